"""Parameters that are no longer in their model, and optimizers that still hold them."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from ..errors import BranchesError
from ..torch_versions import keep_step_hooks


def replaced(old: Iterable[nn.Parameter], model: nn.Module, by: str) -> None:
    """Refuse the next step of an optimizer that holds what ``by`` took out of ``model``."""
    _watch_optimizers()
    kept = {id(parameter) for parameter in model.parameters()}
    for parameter in old:
        if id(parameter) not in kept:
            parameter.replaced_by = by  # type: ignore[attr-defined]


@cache
def _watch_optimizers() -> None:
    keep_step_hooks()
    register_optimizer_step_pre_hook(torch.compiler.disable(_check))


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # What has a gradient is in use, in another model.
    stale = [p.replaced_by for group in optimizer.param_groups for p in group['params'] if hasattr(p, 'replaced_by') and p.grad is None]
    if stale:
        raise BranchesError(
            f'the optimizer holds {len(stale)} parameters that {stale[0]} has replaced in the model, and would train nothing: build '
            f'it after {stale[0]}'
        )
