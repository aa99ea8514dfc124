"""Branches that a checkpoint has beside its weights, in the optimizer's state."""

from typing import Any

from torch import Tensor, nn

from ..optim.attached import KEY
from ..reparam import expand
from .reading import state_dict_of


def _entries(checkpoint: dict[str, Any]) -> list[dict[str, dict[str, Tensor]]]:
    optimizer = checkpoint.get('optimizer') or {}
    states = [each for each in (optimizer, *optimizer.values()) if isinstance(each, dict)]  # several optimizers have one each
    return [state[KEY] for state in states if KEY in state]


def has_branches_beside(checkpoint: dict[str, Any]) -> bool:
    """Whether it was written with branches beside the optimizer; those of fixed scales are no more than their scales."""
    return bool(_entries(checkpoint))


def branches_beside(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The branches in the optimizer's state, by the path of their convolution; where scales are fixed there may be none."""
    found = {path: values for entry in _entries(checkpoint) for path, values in entry.items()}
    return {path: values for path, values in found.items() if values.keys() != {'scale'}}


def training_form(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of a checkpoint with the branches beside it in the place of their weights, as of a model with branches in it."""
    state = state_dict_of(checkpoint)
    for path, values in branches_beside(checkpoint).items():
        state.pop(f'{path}.weight', None)
        state |= {f'{path}.kernel.{name}': value for name, value in values.items()}
    return state


def expand_as(model: nn.Module, checkpoint: dict[str, Any]) -> nn.Module:
    """Give the convolutions of a plain model branches where a checkpoint has them beside its weights, in place."""
    paths = [path for path in branches_beside(checkpoint) if isinstance(model.get_submodule(path), nn.Conv2d)]
    return expand(model, kernel_sizes=range(1, 32, 2), where=lambda path, conv: path in paths) if paths else model
