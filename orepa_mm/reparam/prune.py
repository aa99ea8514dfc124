"""Branches that hardly add to their kernel, moved into the plain branch."""

import logging
from collections.abc import Iterator
from functools import reduce

import torch
from torch import nn

from ..errors import PruneError
from ..layers.kernels import OREPAKernel
from .replaced import replaced

logger = logging.getLogger(__name__)

COMPUTED = (
    'is computed from other parameters: make it one of its own first, by torch.nn.utils.prune.remove() or '
    'torch.nn.utils.parametrize.remove_parametrizations()'
)


def kernels_with_branches(model: nn.Module) -> Iterator[tuple[str, OREPAKernel]]:
    """Path and module of each kernel, those of a deep linear stem's stages among them."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, OREPAKernel))


def computed_parameters(kernel: OREPAKernel) -> list[str]:
    """Those that torch's pruning or a parametrization computes from others."""
    names = ['scale', *(name for branch in kernel.branches for name in kernel.parameters_of(branch))]
    return [name for name in names if not isinstance(getattr(kernel, name), nn.Parameter)]


@torch.no_grad()
def branch_shares(model: nn.Module) -> dict[str, dict[str, float]]:
    """What each branch adds to its kernel: the Frobenius norm of its part, scale included, relative to that of the whole kernel.

    Returns:
        Shares by the path of a kernel and the name of a branch. They add up to 1 or more, as branches may oppose each other.
    """
    found = {}
    for path, kernel in kernels_with_branches(model):
        parts = kernel.parts()
        whole = max(float(reduce(torch.add, parts.values()).norm()), torch.finfo(torch.float64).tiny)
        found[path] = {name: float(part.norm()) / whole for name, part in parts.items()}
    return found


def prune_branches(model: nn.Module, threshold: float) -> nn.Module:
    """Move every branch that adds less than ``threshold`` to its kernel into the plain branch, in place; the outputs stay, to rounding.

    The parameters that stay are the same objects, but for the scales, which lose rows. An optimizer built before still holds what is
    dropped, and is refused: :class:`.PruneBranchesHook` mends that in a run.

    Args:
        model: Any module with :class:`.OREPAConv2d` layers.
        threshold: Share of the kernel's Frobenius norm, 0 to 1.

    Returns:
        ``model``.

    Raises:
        PruneError: For a threshold outside 0..1, a model without branches, while gradients are pending, and for branches whose parameters
            are computed from others. Nothing is changed then.

    Example:
        >>> orepa_mm.prune_branches(model, 0.02)
    """
    check_threshold(threshold)
    drop_branches(model, branches_below(model, threshold))
    return model


def check_threshold(threshold: float) -> None:
    """Raise :class:`.PruneError` for what is no share of a kernel's norm."""
    if not 0 <= threshold <= 1:
        raise PruneError(f"threshold={threshold!r}: a share of the kernel's norm between 0 and 1 is needed")


def branches_below(model: nn.Module, threshold: float) -> dict[str, list[str]]:
    """Branches that add less than ``threshold`` to their kernel and can move into its plain one, by its path."""
    found = {}
    for path, shares in branch_shares(model).items():
        found[path] = [name for name in shares if name != 'origin' and shares[name] < threshold] if 'origin' in shares else []
    return found


def drop_branches(model: nn.Module, names: dict[str, list[str]]) -> None:
    """Move the named branches into the plain one, in place; ``'origin'`` and kernels without it are left alone.

    Raises:
        PruneError: As :func:`prune_branches`.
    """
    kernels = dict(kernels_with_branches(model))
    if not kernels:
        raise PruneError('the model has no branches: nothing to prune')
    kernels = {path: kernel for path, kernel in kernels.items() if 'origin' in kernel.branches}
    chosen = {path: [name for name in names.get(path, ()) if name != 'origin'] for path in kernels}
    parameters = ((path, *named) for path in chosen if chosen[path] for named in kernels[path].named_parameters())
    pending = [f'{path}.{name}' for path, name, parameter in parameters if parameter.grad is not None]
    if pending:
        raise PruneError(f'gradients are pending ({pending[0]}): prune between optimizer steps, after zero_grad()')
    computed = [f'{path}.{name}' for path in chosen if chosen[path] for name in computed_parameters(kernels[path])]
    if computed:
        raise PruneError(f'{computed[0]!r} {COMPUTED}')
    before = list(model.parameters())
    for path, dropped in chosen.items():
        if dropped:
            kernels[path].drop_branches(dropped)
            logger.info('Pruned "%s": %s moved into origin.', path, ', '.join(dropped))
    replaced(before, model, 'prune_branches')
