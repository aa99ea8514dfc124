"""What every convolution layer with training-time branches has in common."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import FuseError, LayerError
from ..functional import HOOKS, in_float32, is_plain_eager
from .adapting import Adapting
from .computed import computed
from .conv_cfg import TakesPlainSizes

PaddingMode = Literal['zeros', 'reflect', 'replicate', 'circular']


def memory_format_of(module: nn.Module) -> torch.memory_format:
    """``channels_last`` where a parameter of ``module`` is in that format and in no other."""
    last = torch.channels_last
    # Those of depthwise convolutions are contiguous in both formats, and their strides are of one.
    kernels = [p for p in module.parameters() if p.dim() == 4 and p.shape[-1] > 1]
    return last if any(p.is_contiguous(memory_format=last) and p.stride(1) == 1 for p in kernels) else torch.contiguous_format


def memory_format_of_input(x: Tensor) -> torch.memory_format:
    """The format of feature maps; a kernel in another one would turn them into it."""
    is_last = is_plain_eager(x) and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


SETTINGS = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')


def shape_of(layer: 'nn.Conv2d | ReparameterizableConv2d') -> dict[str, Any]:
    """The arguments, ``bias`` included, that build a convolution of the shape of ``layer``; device and dtype are not among them."""
    return {name: getattr(layer, name) for name in SETTINGS} | dict(bias=layer.bias is not None)


def share_hooks(old: nn.Module, new: nn.Module) -> None:
    """The same dicts, so that handles which remove hooks go on working, and hooks that are added to one are the other's too."""
    for name in HOOKS:
        setattr(new, name, getattr(old, name))


def check_norms(module: nn.Module, path: str) -> None:
    for name, norm in module.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        if norm.running_mean is None:
            raise FuseError(
                f'the norm "{path}.{name}" inside a {type(module).__name__} keeps no running statistics (track_running_stats=False), '
                'so it has no fixed form to merge: give it statistics, or keep the training form.'
            )
        if norm.training:
            raise FuseError(
                f'the norm "{path}.{name}" inside a {type(module).__name__} is in training mode, where its output depends on the batch: '
                'call model.eval() first.'
            )


def plain_conv(like: 'nn.Conv2d | ReparameterizableConv2d', weight: Tensor, bias: Tensor | None, source: nn.Module) -> nn.Conv2d:
    """A stock convolution like ``like`` with this kernel, which requires grad where any parameter of ``source`` does, and bias."""
    conv = nn.Conv2d(**shape_of(like) | dict(bias=bias is not None), device='meta')
    memory_format = like.memory_format if isinstance(like, ReparameterizableConv2d) else memory_format_of(like)
    own_bias = dict(source.named_parameters()).get('bias')
    trainable = any(p.requires_grad for p in source.parameters() if p is not own_bias)
    # clone: the branchless forms hand out their parameter itself
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=memory_format), requires_grad=trainable)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=trainable if own_bias is None else own_bias.requires_grad)
    return conv.train(like.training)


class _Parameters(dict[str, nn.Parameter | None]):
    """A layer's parameters; ``nn.utils.spectral_norm``, which mmcv's ``with_spectral_norm=True`` calls, looks for "weight" among them."""

    def __missing__(self, name: str) -> None:
        raise LayerError(
            f'a convolution with training-time branches has no parameter {name!r}, as it is computed from them: spectral norm needs '
            "a plain convolution, conv_cfg=dict(type='Conv2d')"
        )


class ReparameterizableConv2d(Adapting, metaclass=TakesPlainSizes):
    """Base of the layers that :func:`orepa_mm.reparameterize` turns into ``nn.Conv2d``.

    It is no ``nn.Conv2d`` on purpose: initialisers that look for one would replace the start of the branches by that of a plain kernel.
    Arguments and attributes are those of ``nn.Conv2d``, ``weight`` and ``bias`` included; the kernel must be square and odd.

    A subclass defines ``add_branches(bias, factory, **options)``, which makes its parameters with the device and dtype in ``factory``,
    :meth:`equivalent_conv`, the kernel and bias of the plain convolution it equals in eval mode, and ``bias``.

    Raises:
        LayerError: For an even or rectangular kernel, and where ``nn.Conv2d`` raises ``ValueError``, e.g. for channels that
            ``groups`` does not divide.
    """

    brings_norm: ClassVar[bool] = False  # whether the layer has norms of its own, so that none follows it
    plain_sizes: ClassVar[tuple[int, ...]] = (1, 7)  # kernel sizes that a backbone of this layer keeps plain
    # How tools recognise the method in a state dict: a part of a key that no other layer has. And where they read the channels: pairs of
    # keys, of a weight whose first dimension is O and of one whose second is I/g (the last, where it is in rows).
    key_mark: ClassVar[str]
    kernel_keys: ClassVar[tuple[tuple[str, str], ...]] = (('origin.weight', 'origin.weight'),)

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: PaddingMode
    bias: Any
    add_branches: Callable[..., None]
    channels_last = False
    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = 'zeros',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._parameters = _Parameters()
        layer = f'{type(self).__name__}({in_channels}, {out_channels}, kernel_size={kernel_size}, groups={groups})'
        if in_channels <= 0 or out_channels <= 0:
            raise LayerError(f'{layer}: in_channels and out_channels must be positive')
        try:  # checks and normalises the arguments; a tensor on the meta device costs nothing
            plain = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False, padding_mode, device='meta')
        except ValueError as error:
            raise LayerError(f'{layer}: {error}') from None
        size = plain.kernel_size
        if len(size) > 2:
            raise LayerError(f"{layer}: has two dimensions, and the kernel {len(size)}; use conv_cfg=dict(type='Conv{len(size)}d')")
        if size[0] != size[1] or size[0] % 2 == 0:
            raise LayerError(f"{layer}: needs a square kernel of odd size; use conv_cfg=dict(type='Conv2d') for this layer")
        for name in (*SETTINGS, '_reversed_padding_repeated_twice'):
            setattr(self, name, getattr(plain, name))
        self.plain_shape = tuple(plain.weight.shape)
        self.add_branches(bias, dict(device=device, dtype=dtype), **options)

    # Torch's own, which ask for the attributes above only; mmcv calls the first too.
    _conv_forward: ClassVar[Any] = nn.Conv2d._conv_forward
    extra_repr = nn.Conv2d.extra_repr

    def equivalent_conv(self) -> tuple[Tensor, Tensor | None]:
        """Kernel [O, I/g, k, k] and bias [O] (or None) of the plain convolution this layer equals in eval mode."""
        raise NotImplementedError

    @torch.inference_mode(False)
    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The plain convolution it equals in eval mode; timm's ``reparameterize_model`` and others look for this method."""
        check_norms(self, type(self).__name__)
        exact: Any = in_float32(self)
        weight, bias = exact.equivalent_conv()
        plain = plain_conv(self, weight, bias, self).to(next(self.parameters()).dtype)
        share_hooks(self, plain)
        return plain

    @property
    def weight(self) -> Tensor:
        """The equivalent kernel, [O, I/g, k, k], computed from the branches at each access and differentiable in them.

        What is written into it goes to :meth:`write`: initialisers and loaders know nothing of branches.
        """
        return computed(self.equivalent_conv()[0], partial(self.write, 'weight'))

    def write(self, name: str, value: Tensor) -> None:
        """Take ``value`` as the weight or bias that is computed, or raise :class:`.LayerError`."""
        raise LayerError(
            f'the {name} of a {type(self).__name__} is computed from branches and their norms and cannot be written: load a state dict of '
            "its branches, call orepa_mm.reparameterize(model) first, or use conv_cfg=dict(type='Conv2d')"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ('weight', 'bias') and isinstance(getattr(type(self), name, None), property):
            self.write(name, value.detach())
        else:
            super().__setattr__(name, value)

    @property
    def memory_format(self) -> torch.memory_format:
        """The format asked for with ``.to(memory_format=...)``, that of the plain convolution too."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> 'ReparameterizableConv2d':
        super()._apply(fn, *args, **kwargs)
        # Branches need not show what was asked for, and a tensor of this shape does.
        shown = torch.empty(1, 2, 2, 2).contiguous(memory_format=self.memory_format)
        self.channels_last = fn(shown).is_contiguous(memory_format=torch.channels_last)
        return self

    def init_weights(self) -> None:
        """Draw new weights; mmcv's ``ConvModule`` leaves layers alone that have this method."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        raise NotImplementedError
