"""Turning the layers with branches of any model into plain convolutions, and back."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..functional import fuse_norm as fuse_norm_into
from ..layers import ReparameterizableConv2d
from .norm_pairs import following_norm, is_batch_norm


class FuseError(ValueError):
    """A norm follows a layer but cannot be folded into it; the message says why and what to do."""


@dataclass(frozen=True)
class Swap:
    """One child of ``parent`` and the module that takes its place."""

    parent: nn.Module
    name: str
    old: nn.Module
    new: nn.Module

    def apply(self) -> None:
        self.parent._modules[self.name] = self.new

    def undo(self) -> None:
        self.parent._modules[self.name] = self.old


def _check_norm(norm: nn.Module, path: str, out_channels: int) -> None:
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


def _check_own_norms(layer: ReparameterizableConv2d, path: str) -> None:
    """A layer with norms in its branches (Diverse Branch Block) has a fixed form in eval mode only."""
    for name, module in layer.named_modules():
        if is_batch_norm(module) and module.training:
            raise FuseError(
                f'the norm "{path}.{name}" inside a {type(layer).__name__} is in training mode, where its output depends on the batch: '
                'call model.eval() first.'
            )


def _plain_conv(layer: ReparameterizableConv2d, norm: nn.Module | None) -> nn.Conv2d:
    """The stock convolution that equals ``layer``, followed by ``norm`` where one is given."""
    weight, bias = layer.equivalent_conv()
    if norm is not None:
        weight, bias = fuse_norm_into(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias is not None,
        layer.padding_mode,
        device='meta',
    )
    channels_last = any(
        p.dim() == 4 and p.shape[-1] > 1 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in layer.parameters()
    )
    # clone: the plain branchless forms hand out their parameter itself
    weight = weight.detach().clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    conv.weight = nn.Parameter(weight, requires_grad=any(p.requires_grad for p in layer.parameters()))
    if bias is not None:
        sources = [p for p in (layer.bias, getattr(norm, 'weight', None), getattr(norm, 'bias', None)) if p is not None]
        trainable = any(p.requires_grad for p in sources or layer.parameters())
        conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=trainable)
    return conv.train(layer.training)


@torch.inference_mode(False)
@torch.no_grad()
def plan_swaps(model: nn.Module, fuse_norm: bool = True) -> list[Swap]:
    """The replacements that re-parameterize ``model``, not yet applied.

    Norms that are shared, of another kind (group, layer, instance norm) or not certain to follow their convolution stay as they are.

    Raises:
        FuseError: When a batch norm follows a layer but is in training mode, has no running statistics or another channel count.
    """
    slots = [(path, module, name) for path, module in model.named_modules() for name in module._modules]
    uses = Counter(id(parent._modules[name]) for _, parent, name in slots)
    swaps, converted = [], {}
    for path, parent, name in slots:
        layer = parent._modules[name]
        if not isinstance(layer, ReparameterizableConv2d):
            continue
        _check_own_norms(layer, f'{path}.{name}'.lstrip('.'))
        norm_name = following_norm(parent, name) if fuse_norm and uses[id(layer)] == 1 else None
        norm = parent._modules[norm_name] if norm_name else None
        if norm is not None and uses[id(norm)] > 1:
            norm = None
        if norm is not None:
            _check_norm(norm, f'{path}.{norm_name}'.lstrip('.'), layer.out_channels)
            swaps.append(Swap(parent, norm_name, norm, nn.Identity().train(norm.training)))
        if id(layer) not in converted:
            converted[id(layer)] = _plain_conv(layer, norm)
        swaps.append(Swap(parent, name, layer, converted[id(layer)]))
    return swaps


def reparameterize(model: nn.Module, fuse_norm: bool = True) -> nn.Module:
    """Turn every layer with training-time branches of ``model`` into a plain ``nn.Conv2d``, in place.

    Device, dtype, memory format and train / eval flag stay. A new parameter requires grad where what it was made from does, so the
    result can be fine-tuned. A model without such layers is returned as it is, so a second call changes nothing.

    Args:
        model: Any module, nested or wrapped.
        fuse_norm: Fold the batch norm (BN, SyncBN) that follows a layer into its convolution; ``nn.Identity`` takes its place.

    Returns:
        ``model``; where ``model`` itself is such a layer, the convolution that replaces it.

    Raises:
        FuseError: When a norm to fold is in training mode, has no running statistics or another channel count. Nothing is changed then.

    Example:
        >>> model = orepa_mm.reparameterize(model.eval())
    """
    if isinstance(model, ReparameterizableConv2d):
        _check_own_norms(model, type(model).__name__)
        with torch.inference_mode(False), torch.no_grad():
            return _plain_conv(model, None)
    for swap in plan_swaps(model, fuse_norm):
        swap.apply()
    return model


@contextmanager
def reparameterized(model: nn.Module, fuse_norm: bool = True) -> Iterator[list[Swap]]:
    """Re-parameterize ``model`` inside a ``with`` block; its own modules, untouched, come back after it."""
    swaps = plan_swaps(model, fuse_norm)
    for swap in swaps:
        swap.apply()
    try:
        yield swaps
    finally:
        for swap in reversed(swaps):
            swap.undo()
