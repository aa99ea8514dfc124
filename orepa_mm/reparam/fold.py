"""The plain convolution that equals a layer with branches, with the norm after it folded in."""

from torch import Tensor, nn

from ..errors import FuseError
from ..functional import fuse_norm
from ..layers import ReparameterizableConv2d
from ..layers.base import memory_format_of
from .norm_pairs import is_batch_norm


def check_norm(norm: nn.Module, path: str, out_channels: int) -> None:
    """Raise :class:`FuseError` unless ``norm``, called ``path`` in messages, has a fixed form for ``out_channels`` channels."""
    if getattr(norm, 'running_mean', None) is None or norm.running_var is None:
        raise FuseError(
            f'the norm "{path}" keeps no running statistics (track_running_stats=False), so it has no fixed form to fold; '
            'pass fuse_norm=False.'
        )
    if norm.training and is_batch_norm(norm) and type(norm).__name__ != 'FrozenBatchNorm2d':
        raise FuseError(
            f'the norm "{path}" is in training mode, where its output depends on the batch: call model.eval() first, '
            'or pass fuse_norm=False to re-parameterize the convolutions alone.'
        )
    if len(norm.running_mean) != out_channels:
        raise FuseError(
            f'the norm "{path}" has {len(norm.running_mean)} channels and the convolution before it {out_channels}; pass fuse_norm=False.'
        )


def check_own_norms(layer: nn.Module, path: str) -> None:
    """A layer with norms in its branches (Diverse Branch Block) has a fixed form in eval mode only."""
    for name, module in layer.named_modules():
        if is_batch_norm(module) and module.training:
            raise FuseError(
                f'the norm "{path}.{name}" inside a {type(layer).__name__} is in training mode, where its output depends on the batch: '
                'call model.eval() first.'
            )


def equivalent_conv(layer: nn.Module, norm: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
    """Kernel [O, I/g, k, k] and bias [O] (or None) of a convolution, plain or with branches, followed by ``norm``."""
    weight, bias = layer.equivalent_conv() if isinstance(layer, ReparameterizableConv2d) else (layer.weight, layer.bias)
    if norm is not None:
        weight, bias = fuse_norm(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    return weight, bias


def plain_conv(like: nn.Module, weight: Tensor, bias: Tensor | None, source: nn.Module, *norms: nn.Module) -> nn.Conv2d:
    """A stock convolution of ``like``'s stride, padding, dilation and groups.

    Args:
        like: Any convolution; device, dtype and memory format are those of ``weight`` and of ``like``'s parameters.
        weight: Kernel, [O, I/g, k, k].
        bias: [O] or None.
        source: What the kernel was made from. The new kernel requires grad where one of its parameters does.
        norms: Folded norms. The new bias requires grad where a parameter of theirs or a bias does.
    """
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        like.kernel_size,
        like.stride,
        like.padding,
        like.dilation,
        like.groups,
        bias is not None,
        like.padding_mode,
        device='meta',
    )
    memory_format = like.memory_format if isinstance(like, ReparameterizableConv2d) else memory_format_of(like)
    # clone: the branchless forms hand out their parameter itself
    weight = weight.detach().clone(memory_format=memory_format)
    conv.weight = nn.Parameter(weight, requires_grad=any(p.requires_grad for p in source.parameters()))
    if bias is not None:
        sources = [p for p in (getattr(like, 'bias', None), *(p for norm in norms for p in norm.parameters())) if p is not None]
        trainable = any(p.requires_grad for p in sources or source.parameters())
        conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=trainable)
    return conv.train(like.training)
