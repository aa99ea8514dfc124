"""Turning the layers with branches of any model into plain convolutions, and back."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import FuseError
from ..layers.base import share_hooks
from .plain import blocks_with_branches, plain_form
from .replaced import replaced

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swap:
    """One child of ``parent``, its path in the model, and the plain form that takes its place."""

    parent: nn.Module
    name: str
    path: str
    old: nn.Module
    new: nn.Module

    def apply(self) -> None:
        setattr(self.parent, self.name, self.new)

    def undo(self) -> None:
        setattr(self.parent, self.name, self.old)
        share_hooks(self.new, self.old)  # whether they are of the full backward pass is no part of the dicts they share
        if self.old.training != self.new.training:
            self.old.train(self.new.training)


def plan_swaps(model: nn.Module) -> list[Swap]:
    """The replacements that re-parameterize the layers inside ``model``, not yet applied.

    Raises:
        FuseError: When the norms inside a block are in training mode or have no running statistics, or when the model is sharded.
    """
    check_whole(model)
    swaps: list[Swap] = []
    plain: dict[int, nn.Module | None] = {}
    merged: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if not path or path.startswith(merged):
            continue
        if id(module) not in plain:
            plain[id(module)] = plain_form(module, path)
        new = plain[id(module)]
        if new is not None:
            parent, _, name = path.rpartition('.')
            swaps.append(Swap(model.get_submodule(parent), name, path, module, new))
            merged += (f'{path}.',)  # swapped as a whole
    return swaps


def is_sharded(model: nn.Module) -> bool:
    """Whether no process has whole parameters (FSDP)."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    # A DTensor has its local part, and a public name of its class in later versions of torch only.
    return any(isinstance(m, FullyShardedDataParallel) for m in model.modules()) or any(hasattr(p, 'to_local') for p in model.parameters())


def check_whole(model: nn.Module) -> None:
    """Raise :class:`FuseError` for a sharded model, and for none."""
    if model is None:
        raise FuseError(
            'there is no model: eval() and train() of some backbones return nothing, so call model.eval() on a line of its own.'
        )
    if is_sharded(model):
        raise FuseError(
            'the model is sharded (FSDP), so no process has whole kernels to squeeze: save a full state dict, load it into a model '
            'that is not sharded, and re-parameterize that.'
        )


def reparameterize(model: nn.Module) -> nn.Module:
    """Turn every layer with training-time branches of ``model`` into a plain ``nn.Conv2d``, in place.

    The outputs stay what they were up to rounding, whatever the model does with its layers. Norms around a layer are left alone, so the
    result has the stock model's parameter names. Blocks whose class fixes the order of their norms are merged with them: Diverse Branch
    Blocks, RepVGG, and whatever offers ``switch_to_deploy()`` (MobileOne, RepLKNet, ...).

    Device, dtype, memory format, train / eval flag and hooks stay. A new parameter requires grad where what it was made from does, so the
    result can be fine-tuned. A model without such layers is returned as it is, so a second call changes nothing.
    An optimizer that was built before holds the branches, and is refused.

    Args:
        model: Any module, nested or wrapped.

    Returns:
        ``model``; where ``model`` itself is such a layer or block, what replaces it.

    Raises:
        FuseError: When the norms inside a block are in training mode (call ``model.eval()`` first) or have no running statistics, and for
            a sharded model. Nothing is changed then.

    Example:
        >>> model = orepa_mm.reparameterize(model.eval())
    """
    swaps = plan_swaps(model)
    plain = plain_form(model, type(model).__name__)
    for swap in swaps:
        swap.apply()
    model = model if plain is None else plain
    left = Counter(type(block).__name__ for block in blocks_with_branches(model).values())
    if left:
        logger.warning('Left as they are, with branches of their own: %s. timm.utils.reparameterize_model(model) merges those.', dict(left))
    replaced((p for swap in swaps for p in swap.old.parameters()), model, 'reparameterize')
    return model


@contextmanager
def reparameterized(model: nn.Module) -> Iterator[nn.Module]:
    """Re-parameterize ``model`` inside a ``with`` block; its own modules, untouched, come back after it, also by an exception.

    The way to evaluate: inside the block a forward pass costs what the plain network's does. Weights are those at the start of the block.

    Raises:
        FuseError: As :func:`reparameterize`, and for a bare layer or block, which cannot be replaced from outside.

    Example:
        >>> with orepa_mm.reparameterized(model.eval()), torch.no_grad():
        ...     predictions = [model(x) for x in batches]
    """
    swaps = plan_swaps(model)
    if plain_form(model, type(model).__name__) is not None:
        raise FuseError(f'a bare {type(model).__name__} cannot be replaced inside a with block: wrap it in nn.Sequential.')
    try:
        for swap in swaps:
            swap.apply()
        yield model
    finally:
        for swap in reversed(swaps):
            swap.undo()
