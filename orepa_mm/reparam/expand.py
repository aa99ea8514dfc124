"""Training-time branches for the plain convolutions of any trained model, without changing what it computes."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import ExpandError, LayerError
from ..layers import METHODS, SqueezedConv2d
from ..layers.base import share_hooks
from ..layers.kernels import branch_names, check_start
from ..layers.stem import DeepLinearKernel
from ..torch_versions import set_submodule
from .convert import check_whole
from .plain import blocks_with_branches
from .replaced import replaced

logger = logging.getLogger(__name__)


def expand(
    model: nn.Module,
    *,
    method: str = 'OREPA',
    kernel_sizes: Iterable[int] | None = None,
    pattern: str | None = None,
    where: Callable[[str, nn.Conv2d], bool] | None = None,
    first_layer: bool = True,
    start: str = 'balanced',
    branches: str | Iterable[str] = 'full',
) -> nn.Module:
    """Turn the plain convolutions of ``model`` into layers with branches, in place: the inverse of :func:`.reparameterize`.

    The outputs stay what they were up to rounding, in train and eval mode, as do device, dtype, memory format, ``requires_grad``, mode,
    biases and hooks. Norms are untouched; shared layers stay shared. What stays plain, and why, is logged.

    Call it before the optimizer is built: one that was built before holds the weights that are gone, and is refused.

    Args:
        model: Any module.
        method: ``'OREPA'``, or another name in :data:`.METHODS` whose branches have no norms.
        kernel_sizes: Expand convolutions of these sizes only, such as ``(3,)``. None: all but those that would become products of 3x3
            kernels (7x7 and larger), as steps move such a product many times as far (:meth:`.DeepLinearKernel.step`).
        pattern: Expand convolutions only whose path in the model this regular expression is found in.
        where: Expand convolutions only for which this returns True; called with path and convolution.
        first_layer: Whether to expand the first convolution.
        start: How the branches start: ``'balanced'`` (default) gives the plain branch the kernel and all others zero, with scales by which
            the first steps at a plain layer's learning rate are as long as the plain layer's (up to 5x5); ``'zeros'`` the same with the
            published scales; ``'shared'`` shares the kernel out over the branches.
        branches: Of OREPA, as for :class:`.OREPAConv2d`, ``'origin'`` among them.

    Returns:
        ``model``; such a layer where ``model`` itself is a convolution.

    Raises:
        ExpandError: For a ``method`` that is unknown or has norms in its branches, for an unknown ``start``, for ``branches`` that are
            unknown, lack ``'origin'`` or go with another method, for a sharded model, and when there is nothing to expand. Nothing is
            changed then.

    Example:
        >>> model = orepa_mm.expand(torchvision.models.resnet50(weights='DEFAULT'), kernel_sizes=(3,))
    """
    if isinstance(model, nn.Conv2d):
        layer, options = _layer_of(method), _options(method, branches, start)
        reason = _reason_to_stay_plain(model, Counter())
        if reason:
            raise ExpandError(f'the convolution {reason}')
        expanded = layer.from_conv(model, **options)
        share_hooks(model, expanded)
        return expanded
    planned = plan_expansion(model, method, branches, start, kernel_sizes, pattern, where, first_layer)
    convs = {path: model.get_submodule(path) for path in planned}
    for path, new in planned.items():
        share_hooks(convs[path], new)
        set_submodule(model, path, new)
    replaced((p for conv in convs.values() for p in conv.parameters()), model, 'expand')
    logger.info('Expanded %d convolutions into %s layers: build the optimizer now, not before.', len(set(planned.values())), method)
    return model


def plan_expansion(
    model: nn.Module,
    method: str,
    branches: str | Iterable[str],
    start: str,
    kernel_sizes: Iterable[int] | None,
    pattern: str | None,
    where: Callable[[str, nn.Conv2d], bool] | None,
    first_layer: bool,
    beside: bool = False,
) -> dict[str, SqueezedConv2d]:
    """The layers with branches for the convolutions of ``model`` that are chosen, by their paths; the model is not changed.

    Args:
        model, method, branches, start, kernel_sizes, pattern, where, first_layer: As for :func:`expand`.
        beside: The layers will not be part of the model, only their kernels are wanted: a weight that several modules share gets one
            layer, subclasses of ``nn.Conv2d`` count too, and branches of weights in half precision are in float32.

    Raises:
        ExpandError: As :func:`expand`.
    """
    layer, options = _layer_of(method), _options(method, branches, start)
    check_whole(model)
    named = (each for module in model.modules() for each in module.named_parameters(recurse=False, remove_duplicate=False))
    owners = Counter(id(parameter) for _, parameter in named)
    sizes = None if kernel_sizes is None else {(size, size) for size in kernel_sizes}
    planned: dict[str, SqueezedConv2d] = {}
    made: dict[int, SqueezedConv2d] = {}
    plain: dict[str, str] = {}
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    for path, conv in model.named_modules(remove_duplicate=False):
        if not isinstance(conv, nn.Conv2d):
            plain |= {path: 'is transposed'} if isinstance(conv, nn.ConvTranspose2d) else {}
            continue
        if conv is first and not first_layer:
            continue
        if sizes is not None and conv.kernel_size not in sizes:
            continue
        if (pattern is not None and not re.search(pattern, path)) or (where is not None and not where(path, conv)):
            continue
        key = id(conv.weight) if beside else id(conv)
        if key not in made:
            reason = _reason_to_stay_plain(conv, Counter() if beside else owners, beside)
            if not reason:
                try:
                    dtype = torch.promote_types(conv.weight.dtype, torch.float32) if beside else None
                    new = layer.from_conv(conv, dtype=dtype, **options)
                    if sizes is None and isinstance(new.kernel, DeepLinearKernel):
                        reason = f'stays plain: as a product of {len(new.kernel.stages)} kernels it moves many times as far in a step'
                        reason += f'; ask for it with kernel_sizes=({conv.kernel_size[0]}, ...)'
                    else:
                        made[key] = new
                        if not beside and isinstance(conv.bias, nn.Parameter):
                            new.bias = conv.bias  # the same object, which others may share
                except LayerError as error:
                    reason = f'stays plain: {error}'
            if reason:
                plain[path] = reason
                continue
        planned[path] = made[key]
    if not planned:
        left = '; '.join(f'"{path}" {reason}' for path, reason in list(plain.items())[:3]) or 'no convolution was chosen'
        raise ExpandError(f'the model has nothing to expand: {left}')
    for path, reason in plain.items():
        logger.info('Left plain: "%s" %s.', path, reason)
    inside = {path: block for path, block in blocks_with_branches(model).items() if any(each.startswith(f'{path}.') for each in planned)}
    if inside:
        names = ', '.join(sorted({type(block).__name__ for block in inside.values()}))
        logger.warning('%d blocks have branches already (%s), and each gets some more; where=... chooses convolutions.', len(inside), names)
    return planned


def _layer_of(method: str) -> type[SqueezedConv2d]:
    able = {name: layer for name, layer in METHODS.items() if issubclass(layer, SqueezedConv2d)}
    if method not in METHODS:
        raise ExpandError(f'method={method!r} is unknown; choose from {", ".join(able)}')
    if method not in able:
        raise ExpandError(
            f'method={method!r}: its branches have norms, whose statistics do not follow from a kernel; choose from {", ".join(able)}, '
            'or train from random weights'
        )
    return able[method]


def _options(method: str, branches: str | Iterable[str], start: str) -> dict[str, Any]:
    if method != 'OREPA' and branches != 'full':
        raise ExpandError(f"branches={branches!r} is for method='OREPA', not {method!r}")
    try:
        check_start(start)
        names = branch_names(branches)
    except LayerError as error:
        raise ExpandError(str(error)) from None
    if 'origin' not in names:
        raise ExpandError(f"branches={branches!r} cannot add up to any given kernel; it takes 'origin'")
    return dict(start=start) | (dict(branches=names) if method == 'OREPA' else {})


def _reason_to_stay_plain(conv: nn.Conv2d, owners: Counter[int], beside: bool = False) -> str:
    """Why ``conv`` cannot be expanded; '' where it can."""
    if not all(isinstance(each, nn.Parameter | None) for each in (conv.weight, None if beside else conv.bias)):
        return 'has a weight or bias that is computed from others (a parametrization, weight norm, spectral norm or pruning)'
    if type(conv) is not nn.Conv2d and not beside:
        return f'is a {type(conv).__name__}, which does something else than nn.Conv2d'
    height, width = conv.kernel_size
    if height != width or height % 2 == 0:
        return f'has a kernel of {height} x {width}, and branches are centred on a square odd one'
    if owners[id(conv.weight)] > 1:
        return 'shares its weight with another part of the model'
    if not conv.weight.is_floating_point():
        return f'has a weight of {conv.weight.dtype}'
    return ''
