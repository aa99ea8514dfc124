"""Linear branches as plain kernels that are trained with the branches' gradients."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import GradientFormError
from ..functional import Branches, gradient_matrix, squeeze_kxk
from ..layers import OREPAConv2d
from ..layers.base import memory_format_of
from ..layers.gradient_form import GradientFormConv2d, GradientFormKernel
from ..layers.kernels import PRESETS, DeepLinearKernel, OREPAKernel, OREPAPointwiseKernel
from .convert import check_whole
from .plain import plain_conv, share_hooks

logger = logging.getLogger(__name__)

LINEAR = PRESETS['light']
MATRIX = 'gradient_matrix'
Kernel = OREPAKernel | OREPAPointwiseKernel
Optimizers = Optimizer | Iterable[Optimizer] | None


def gradient_form(model: nn.Module, optimizer: Optimizers = None) -> nn.Module:
    """Turn OREPA layers with linear branches into plain convolutions that train exactly as the branches would, in place.

    The branches ``origin``, ``avg``, ``freq`` and ``point`` are linear in their weights. With fixed scales a step of SGD on them (momentum,
    Nesterov, dampening and weight decay included) moves the kernel as a step on the kernel itself does, once its gradient is multiplied
    by a fixed matrix, ``sum_b s_b^2 A_b A_b^T``. So the scales become constants, at their present values, parameters are the plain
    network's, and what a step adds is one small product for each kernel, about the time of copying it. The outputs stay, to rounding. The
    stages of a deep linear stem become plain stages likewise.

    ``weight.grad`` is the product, from the backward pass on: whatever accumulates, scales, averages or clips gradients finds it there.

    Args:
        model: Any module with :class:`.OREPAConv2d` layers; Diverse Branch Blocks and plain layers in it stay.
        optimizer: An SGD built before, or several: it gets the new kernels in the place of the branches, momentum included. Without it
            build an SGD afterwards; another kind of optimizer would not do what it does on branches.

    Returns:
        ``model``; a :class:`.GradientFormConv2d` where ``model`` itself is a layer with linear branches.

    Raises:
        GradientFormError: For a layer with other branches, one of which some are frozen or which the optimizer treats differently, for an
            optimizer of another kind, and for a model without such layers. Nothing is changed then.
        FuseError: For a sharded model.

    Example:
        >>> model = orepa_mm.gradient_form(model)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    """
    optimizers = _listed(optimizer)
    check_gradient_form(model, optimizers)
    swaps: dict[str, nn.Module] = {}
    made: dict[int, GradientFormConv2d | GradientFormKernel] = {}
    result = model
    for path, layer, kernel in _places(model):
        whole = kernel is layer.kernel
        old: nn.Module = layer if whole else kernel
        if id(old) not in made:
            made[id(old)] = _layer_form(layer, kernel) if whole else GradientFormKernel(_plain_weight(kernel), _matrix(kernel))
            _hand_over(kernel, made[id(old)], optimizers)
        if path:
            swaps[path] = made[id(old)]
        else:
            result = made[id(old)]
    for path, new in swaps.items():
        model.set_submodule(path, new)
    logger.info('Turned %d kernels with linear branches into plain ones that train as the branches would.', len(made))
    return result


def check_gradient_form(model: nn.Module, optimizer: Optimizers = None) -> None:
    """Raise what :func:`gradient_form` would raise, and change nothing."""
    check_whole(model)
    places = list(_places(model))
    if not places:
        raise GradientFormError('the model has no layer with branches: nothing to turn into gradient form')
    refused = {path: [name for name in kernel.branches if name not in LINEAR] for path, _, kernel in places}
    named = [f'"{path}" ({", ".join(names)})' for path, names in refused.items() if names]
    if named:
        more = f' and {len(named) - 3} more' if len(named) > 3 else ''
        raise GradientFormError(
            f'gradient form is for linear branches ({", ".join(LINEAR)}), and these are products of weights: {", ".join(named[:3])}{more}. '
            "Build the model with branches='light', into which a checkpoint with all branches loads, or prune them (prune_branches)."
        )
    optimizers = _listed(optimizer)
    for path, _, kernel in places:
        weights = _weights(kernel).values()
        if len({weight.requires_grad for weight in weights}) > 1:
            raise GradientFormError(f'"{path}": some of its branches are frozen and some are not; freeze all of them or none')
        for each in optimizers:
            _check_optimizer(each, path, kernel)


def check_sgd(optimizer: Optimizer) -> None:
    """Raise :class:`.GradientFormError` for an optimizer that a matrix on the gradient does not commute with."""
    if not isinstance(optimizer, torch.optim.SGD):
        raise GradientFormError(
            f'gradient form is exact for SGD only, and the optimizer is {type(optimizer).__name__}: what divides gradients by their sizes '
            "does something else on branches than on a kernel. Use SGD, or train the branches (branches='light')."
        )


def gradient_form_in(state: dict[str, Tensor]) -> bool:
    """Whether a state dict is of a model in gradient form."""
    return any(key.endswith(f'.{MATRIX}') for key in state)


def is_gradient_form(model: nn.Module) -> bool:
    """Whether a model has kernels in gradient form."""
    return any(isinstance(module, GradientFormConv2d | GradientFormKernel) for module in model.modules())


def _listed(optimizer: Optimizers) -> list[Optimizer]:
    return [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)


def _places(model: nn.Module) -> Iterator[tuple[str, OREPAConv2d, Kernel]]:
    """Path of what is replaced, its layer and its kernel: a whole layer, or the stages of its deep linear kernel."""
    for path, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, OREPAConv2d):
            continue
        if isinstance(layer.kernel, DeepLinearKernel):
            prefix = f'{path}.' if path else ''
            for index, stage in enumerate(layer.kernel.stages):
                if isinstance(stage, OREPAKernel):
                    yield f'{prefix}kernel.stages.{index}', layer, stage
        elif isinstance(layer.kernel, Kernel):
            yield path, layer, layer.kernel


def _weights(kernel: Kernel) -> dict[str, nn.Parameter]:
    """The weights of the linear branches, which have one each, by their name."""
    return {name: getattr(kernel, name) for name in kernel.branches if name in LINEAR}


@torch.no_grad()
def _squeezed(kernel: Kernel, values: dict[str, Tensor]) -> Tensor:
    """The kernel [O, I/g, k, k] of linear branches with other values than their weights, as their gradients, in the weights' dtype."""
    exact = {name: value.double() for name, value in values.items()}
    scale = kernel.scale.double()
    if isinstance(kernel, OREPAPointwiseKernel):
        whole = exact['origin'] * scale[0].view(-1, 1, 1, 1)
    else:
        prior = dict(prior=kernel.prior.double()) if kernel.prior is not None else {}
        whole = squeeze_kxk(Branches(scale=scale, **exact, **prior), kernel.shape, kernel.groups)
    return whole.to(kernel.scale.dtype)


def _matrix(kernel: Kernel) -> Tensor:
    rows = dict(zip(kernel.branches, kernel.scale, strict=True))
    matrix = gradient_matrix(rows, kernel.kernel_size, kernel.prior) if isinstance(kernel, OREPAKernel) else gradient_matrix(rows, 1)
    return matrix.to(kernel.scale.dtype)


def _plain_weight(kernel: Kernel) -> nn.Parameter:
    weights = _weights(kernel)
    whole = _squeezed(kernel, {name: weight.detach() for name, weight in weights.items()})
    memory_format = kernel.memory_format if isinstance(kernel, OREPAKernel) else memory_format_of(kernel)
    return nn.Parameter(whole.clone(memory_format=memory_format), requires_grad=next(iter(weights.values())).requires_grad)


def _layer_form(layer: OREPAConv2d, kernel: Kernel) -> GradientFormConv2d:
    new = GradientFormConv2d.from_conv(plain_conv(layer, _plain_weight(kernel), None, kernel), _matrix(kernel))
    new.weight.requires_grad_(next(iter(_weights(kernel).values())).requires_grad)
    new.bias = layer.bias  # the same object, which an optimizer may hold
    share_hooks(layer, new)
    return new


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != 'params'}


def _check_optimizer(optimizer: Optimizer, path: str, kernel: Kernel) -> None:
    weights = [weight for weight in _weights(kernel).values() if weight.requires_grad]
    ids = {id(weight) for weight in weights}
    groups = [(group, [p for p in group['params'] if id(p) in ids]) for group in optimizer.param_groups]
    holding = [group for group, held in groups if held]
    if not holding:
        return
    check_sgd(optimizer)
    if sum(len(held) for _, held in groups) < len(weights):
        raise GradientFormError(f'"{path}": the optimizer holds some of its branches only; give it all of them or none')
    if any(_settings(group) != _settings(holding[0]) for group in holding):
        raise GradientFormError(f'"{path}": the optimizer treats its branches differently; give all of them the same settings')


def _hand_over(kernel: Kernel, new: GradientFormConv2d | GradientFormKernel, optimizers: list[Optimizer]) -> None:
    """Gradients that are pending, and the place and the momentum in the optimizer, from the branches to the plain kernel."""
    weights, weight = _weights(kernel), new.weight

    def moved(values: dict[str, Tensor | None]) -> Tensor | None:
        if all(value is None for value in values.values()):
            return None
        there = {name: torch.zeros_like(weights[name]) if value is None else value for name, value in values.items()}
        return torch.empty_like(weight).copy_(_squeezed(kernel, there))

    weight.grad = moved({name: parameter.grad for name, parameter in weights.items()})
    first, *others = weights.values()
    dropped = {id(parameter) for parameter in (*others, kernel.scale)}
    for optimizer in optimizers:
        state = {name: optimizer.state.pop(parameter, {}) for name, parameter in weights.items()}
        optimizer.state.pop(kernel.scale, None)
        momentum = moved({name: each.get('momentum_buffer') for name, each in state.items()})
        if momentum is not None:
            optimizer.state[weight] = dict(momentum_buffer=momentum)
        for group in optimizer.param_groups:
            group['params'] = [weight if p is first else p for p in group['params'] if id(p) not in dropped]
