"""Turning the layers with branches of any model into plain convolutions, and back."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..layers import ReparameterizableConv2d
from .blocks import is_mergeable_block, merge_block
from .fold import check_norm, check_own_norms, equivalent_conv, plain_conv
from .norm_pairs import following_norm


@dataclass(frozen=True)
class Swap:
    """One child of ``parent`` and the module that takes its place: a plain convolution, a merged block, or identity for a norm."""

    parent: nn.Module
    name: str
    old: nn.Module
    new: nn.Module

    def apply(self) -> None:
        self.parent._modules[self.name] = self.new

    def undo(self) -> None:
        self.parent._modules[self.name] = self.old


def is_reparameterizable(module: nn.Module) -> bool:
    """Whether ``module`` itself is a layer or block with training-time branches."""
    return isinstance(module, ReparameterizableConv2d) or is_mergeable_block(module)


def _deployed(layer: ReparameterizableConv2d, norm: nn.Module | None, path: str) -> nn.Conv2d:
    check_own_norms(layer, path)
    return plain_conv(layer, *equivalent_conv(layer, norm), layer, *([] if norm is None else [norm]))


@torch.inference_mode(False)
@torch.no_grad()
def plan_swaps(model: nn.Module, fuse_norm: bool = True) -> list[Swap]:
    """The replacements that re-parameterize ``model``, not yet applied.

    Norms that are shared, of another kind (group, layer, instance norm) or not certain to follow their convolution stay as they are.

    Raises:
        FuseError: When a batch norm follows a layer but is in training mode, has no running statistics or another channel count.
    """
    uses = Counter(id(child) for module in model.modules() for child in module._modules.values())
    swaps, converted, merged = [], {}, ()
    for path, parent in model.named_modules():
        if f'{path}.'.startswith(merged):
            continue  # inside a block that is swapped as a whole
        for name, layer in parent._modules.items():
            place = f'{path}.{name}'.lstrip('.')
            if fuse_norm and layer is not None and is_mergeable_block(layer):
                if id(layer) not in converted:
                    converted[id(layer)] = merge_block(layer, place)
                merged += (f'{place}.',)
            elif isinstance(layer, ReparameterizableConv2d):
                norm_name = following_norm(parent, name) if fuse_norm and uses[id(layer)] == 1 else None
                norm = parent._modules[norm_name] if norm_name else None
                if norm is not None and uses[id(norm)] > 1:
                    norm = None
                if norm is not None:
                    check_norm(norm, f'{path}.{norm_name}'.lstrip('.'), layer.out_channels)
                    swaps.append(Swap(parent, norm_name, norm, nn.Identity().train(norm.training)))
                if id(layer) not in converted:
                    converted[id(layer)] = _deployed(layer, norm, place)
            else:
                continue
            swaps.append(Swap(parent, name, layer, converted[id(layer)]))
    return swaps


def reparameterize(model: nn.Module, fuse_norm: bool = True) -> nn.Module:
    """Turn every layer with training-time branches of ``model`` into a plain ``nn.Conv2d``, in place.

    A RepVGG block of mmpretrain becomes its own deployed form, one convolution and the activation.

    Device, dtype, memory format and train / eval flag stay. A new parameter requires grad where what it was made from does, so the
    result can be fine-tuned. A model without such layers is returned as it is, so a second call changes nothing.

    Args:
        model: Any module, nested or wrapped.
        fuse_norm: Fold the batch norm (BN, SyncBN) that follows a layer into its convolution; ``nn.Identity`` takes its place. Without
            it RepVGG blocks keep their branches, as each has a norm.

    Returns:
        ``model``; where ``model`` itself is such a layer or block, what replaces it.

    Raises:
        FuseError: When a norm to fold is in training mode, has no running statistics or another channel count. Nothing is changed then.

    Example:
        >>> model = orepa_mm.reparameterize(model.eval())
    """
    if is_reparameterizable(model):
        name = type(model).__name__
        return reparameterize(nn.ModuleDict({name: model}), fuse_norm)[name]
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
