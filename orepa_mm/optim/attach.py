"""Attaching branches to an optimizer."""

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import BranchesError, NotHeldError
from ..layers import SqueezedConv2d
from ..reparam.convert import check_whole
from ..reparam.expand import plan_expansion
from ..reparam.plain import plain_form
from ..reparam.prune import COMPUTED, computed_parameters, kernels_with_branches
from ..torch_versions import set_submodule
from .attached import AttachedBranches, attached_to
from .groups import exchange
from .updates import BranchUpdate, MatrixUpdate, is_linear

logger = logging.getLogger(__name__)

SCALES = ('learned', 'fixed')
NOT_HELD = (
    'the optimizer holds none of the weights that would train as branches, or all of them are frozen: build it for the parameters of this '
    'model'
)


def attach_branches(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    method: str = 'OREPA',
    branches: str | Iterable[str] = 'full',
    start: str = 'balanced',
    kernel_sizes: Iterable[int] | None = None,
    pattern: str | None = None,
    where: Callable[[str, nn.Conv2d], bool] | None = None,
    first_layer: bool = True,
    scales: str = 'learned',
) -> AttachedBranches:
    """Train the convolutions of ``model`` as branches that stand beside ``optimizer``; the model stays the plain network it is.

    From then on ``loss.backward(); optimizer.step()`` trains branches, exactly as if they were in the model: a gradient with respect to
    the squeezed kernel, pulled back through the squeezing, is the gradient of the branches. The model's modules, parameters, keys and
    hooks are untouched, so DDP, compilers, exporters, averages of weights and checkpoints see the plain network.

    - Learning rate, weight decay and all else of a weight's parameter group hold for its branches. ``weight.grad`` is the plain
      gradient: clipping acts on that. A ``GradScaler`` and fused optimizers work as ever; with accumulated gradients the branches are
      squeezed once a step.
    - A weight without a gradient is left alone, a shared one has one set of branches, and weights in half precision have float32 branches.
    - Where somebody else has written to a weight since the last step (a checkpoint that was loaded, pruning), its branches are made anew
      from it, without momentum, and a line is logged (:meth:`.AttachedBranches.renew`).
    - ``optimizer.state_dict()`` holds the branches, and ``load_state_dict`` brings them back: attach them first. A state dict without
      branches loads too, and they start from the weights.
    - Layers with branches that are in the model already become plain convolutions, and hand their branches and the optimizer's states
      over. Convolutions beside them stay plain. :meth:`.AttachedBranches.move_into_model` is the way back.

    Several processes must all attach; the branches of the first are taken.

    Args:
        model: Any module, on the device where it trains.
        optimizer: Built for the model's parameters, of any class that steps on its ``param_groups``; also inside a wrapper (mmengine's,
            Lightning's, accelerate's) that has it as ``.optimizer``.
        method, branches, start, kernel_sizes, pattern, where, first_layer: As for :func:`.expand`. Branches are drawn in the same order,
            from the same generator. Frozen weights get none.
        scales: ``'learned'``, or ``'fixed'``: the scales stay as they start. Light branches of torch's own ``SGD`` then need no squeezing
            at all: a step is the plain one, with each gradient multiplied by a fixed matrix ("Re-parameterizing Your Optimizers rather
            than Architectures", ICLR 2023, whose factors for each element this extends).

    Returns:
        The handle: it prunes branches, puts them into the model, and ends it.

    Raises:
        BranchesError: For an optimizer that is none of torch's, that is sharded (ZeRO), that evaluates its closure many times (LBFGS), that
            has branches attached, or that holds no weight of the convolutions chosen; for layers in the model whose branches it treats
            differently; for an unknown ``scales``, and fixed ones of a method that has none.
        ExpandError: As :func:`.expand`.
        FuseError: For a sharded model.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        >>> orepa_mm.attach_branches(model, optimizer)
        >>> loss(model(x)).backward(); optimizer.step()
    """
    optimizer = _checked(optimizer)
    if scales not in SCALES:
        raise BranchesError(f'scales={scales!r} is unknown; choose from {", ".join(SCALES)}')
    check_whole(model)
    if isinstance(model, SqueezedConv2d):
        raise BranchesError(f'a bare {type(model).__name__} cannot be replaced from outside: wrap it in nn.Sequential')
    if any(isinstance(module, SqueezedConv2d) for module in model.modules()):
        places = _moved_out(model, optimizer, scales)
    else:
        planned = plan_expansion(model, method, branches, start, kernel_sizes, pattern, where, first_layer, beside=True)
        places = {path: (cast(nn.Conv2d, model.get_submodule(path)), layer) for path, layer in planned.items()}
    held = {id(p) for group in optimizer.param_groups for p in group['params']}
    updates: dict[int, BranchUpdate] = {}
    for path, (conv, layer) in places.items():
        if id(conv.weight) in held and conv.weight.requires_grad and id(conv.weight) not in updates:
            updates[id(conv.weight)] = _update(path, conv, layer, start, scales, optimizer)
    if not updates:
        raise NotHeldError(NOT_HELD)
    _start_alike(updates.values())
    logger.info('%d of the weights train as branches beside the optimizer.', len(updates))
    return AttachedBranches(model, optimizer, list(updates.values()))


def _checked(optimizer: Any) -> Optimizer:
    inner = getattr(optimizer, 'optimizer', None)
    optimizer = inner if isinstance(inner, Optimizer) else optimizer
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise BranchesError(f'{name} is no optimizer of torch, which alone can have branches beside it')
    if isinstance(optimizer, torch.optim.LBFGS):
        raise BranchesError(
            'LBFGS evaluates its closure many times in a step, between which branches would have to be squeezed: use another'
        )
    if torch.distributed.is_available():
        from torch.distributed.optim import ZeroRedundancyOptimizer

        if isinstance(optimizer, ZeroRedundancyOptimizer):
            raise BranchesError(f'{name} is sharded, so no process has all of the branches: use the optimizer inside it for all parameters')
    if attached_to(optimizer) is not None:
        raise BranchesError('the optimizer has branches already: call detach() of the handle that attach_branches returned first')
    return optimizer


def _update(path: str, conv: Any, layer: SqueezedConv2d, start: str, scales: str, optimizer: Optimizer) -> BranchUpdate:
    kernel = layer.kernel
    kind: type[BranchUpdate] = BranchUpdate
    if scales == 'fixed':
        for parameter in _scales(layer):
            parameter.requires_grad_(False)
        # A subclass of SGD may do what does not commute with a matrix.
        kind = MatrixUpdate if is_linear(kernel) and type(optimizer) is torch.optim.SGD else BranchUpdate
    # Wrappers change the path: a state dict is to fit with them and without.
    update = kind(re.sub(r'^((module|_orig_mod)\.)+', '', path), conv, type(layer), kernel, start)
    if isinstance(update, MatrixUpdate):
        update.take_over(optimizer)
    return update


def _scales(layer: SqueezedConv2d) -> list[nn.Parameter]:
    found = [parameter for name, parameter in layer.kernel.named_parameters() if name.split('.')[-1] == 'scale']
    if not found:
        raise BranchesError(f"scales='fixed': the branches of a {type(layer).__name__} have no scales")
    return found


def _start_alike(updates: Iterable[BranchUpdate]) -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for update in updates:
            for value in update.values().values():
                torch.distributed.broadcast(value, 0)


def _moved_out(model: nn.Module, optimizer: Optimizer, scales: str) -> dict[str, tuple[nn.Conv2d, SqueezedConv2d]]:
    """Make the layers with branches of a model plain, in place, and give the optimizer their weights in the place of the branches.

    Layers whose branches are another optimizer's stay. No layer is changed where one is refused.
    """
    layers: dict[int, tuple[str, SqueezedConv2d]] = {}
    paths: list[tuple[str, SqueezedConv2d]] = []
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, SqueezedConv2d):
            layers.setdefault(id(layer), (path, layer))
            paths.append((path, layer))
    weights: dict[int, list[tuple[str, nn.Parameter]]] = {}  # for the first branch of each
    branches: set[int] = set()
    convs: dict[int, Any] = {}
    for path, layer in layers.values():
        for inner, kernel in kernels_with_branches(layer):
            for name in computed_parameters(kernel):
                raise BranchesError(f'"{path}.{inner}.{name}" {COMPUTED}')
        trained = [p for p in layer.kernel.parameters() if p.requires_grad]
        ids = {id(p) for p in trained}
        groups = [group for group in optimizer.param_groups if any(id(p) in ids for p in group['params'])]
        settings = [{key: value for key, value in group.items() if key != 'params'} for group in groups]
        there = {id(p) for group in groups for p in group['params']} & ids
        if there and (there != ids or any(each != settings[0] for each in settings)):
            raise BranchesError(
                f'"{path}": the optimizer holds some of its branches only, or treats them differently; give all of them the same settings'
            )
        if trained and not there:
            continue  # another optimizer's
        if any(p.grad is not None and p.grad.any() for p in trained):
            raise BranchesError(f'"{path}": gradients of its branches are pending; attach between optimizer steps, after zero_grad()')
        if there and scales == 'fixed':
            _scales(layer)
        conv: Any = plain_form(layer, path)
        conv.bias = layer.bias  # the same object, which the optimizer may hold
        convs[id(layer)] = conv
        if there:
            first = next(id(p) for group in optimizer.param_groups for p in group['params'] if id(p) in ids)
            weights[first] = [(f'{path}.weight', conv.weight)]
        branches |= {id(p) for p in layer.kernel.parameters()}
    if not weights:
        raise NotHeldError(NOT_HELD)
    exchange(optimizer, {branch: [] for branch in branches} | weights)
    for path, layer in paths:
        if id(layer) in convs:
            set_submodule(model, path, convs[id(layer)])
    return {path: (convs[id(layer)], layer) for path, layer in layers.values() if id(layer) in convs}
