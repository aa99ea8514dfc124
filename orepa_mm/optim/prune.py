"""Dropping branches while an optimizer trains them."""

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from ..reparam.prune import drop_branches, kernels_with_branches
from .groups import exchange


def drop_branches_of(model: nn.Module, names: dict[str, list[str]], optimizers: Iterable[Optimizer]) -> None:
    """:func:`.drop_branches`, and out of the optimizers what is dropped; what stays keeps its momentum, scales that lose rows too.

    Args:
        model: Any module with branches.
        names: Branches by the path of their kernel.
        optimizers: Those that hold its parameters or their states.
    """
    before, branches = dict(model.named_parameters()), {path: kernel.branches for path, kernel in kernels_with_branches(model)}
    drop_branches(model, names)
    after = dict(model.named_parameters())
    rows: dict[int, tuple[str, nn.Parameter, list[int]]] = {}
    for path, kernel in kernels_with_branches(model):
        if kernel.branches != branches[path]:
            scale = f'{path}.scale' if path else 'scale'
            rows[id(before[scale])] = (scale, after[scale], [branches[path].index(name) for name in kernel.branches])
    kept = {id(parameter) for parameter in after.values()}
    dropped = {id(parameter): parameter for parameter in before.values() if id(parameter) not in kept}
    for optimizer in optimizers:
        for old in dropped.values():
            state = optimizer.state.pop(old, None)
            if state and id(old) in rows:
                _, new, there = rows[id(old)]
                per_row = {key for key, value in state.items() if getattr(value, 'shape', None) == old.shape}
                optimizer.state[new] = {key: value[there] if key in per_row else value for key, value in state.items()}
        exchange(optimizer, {old: [(rows[old][0], rows[old][1])] if old in rows else [] for old in dropped})
