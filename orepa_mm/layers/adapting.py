"""What can be loaded into layers with branches beside their own state dicts: plain kernels, other branches, names of earlier files."""

import logging
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError, PlainKernelError
from ..functional import BRANCHES, WEIGHTS, frequency_prior, rows_of, squeeze_kxk

logger = logging.getLogger(__name__)

# What the weights of the sequence are called in a 1x1 kernel, which has no identity added to the first.
POINTWISE = dict(first='seq_1x1', second='seq_kxk')
# How long the branches are at the start of a k x k kernel and of a 1x1 kernel, whose squares add up to about one: a branch moves the kernel
# by its scale squared times what a plain kernel's step would be, so the first steps are as long as the plain layer's at the same learning
# rate (in a product of kernels longer).
BALANCED: tuple[dict[str, float], dict[str, float]] = (
    dict(origin=0.8, avg=0.25, freq=0.25, sequence=0.5, point=0.25, separable=0.25),
    dict(origin=0.8, sequence=0.6),
)
SMALLEST_SCALE = 1e-2  # of a plain branch that others are added to: dividing by less would lose digits


class Adapting(nn.Module):
    """A module that computes a kernel of ``plain_shape``, [O, I/g, k, k], and may load a plain one in the place of its parameters."""

    plain_shape: tuple[int, ...]

    def adapt_state_dict(self, state: dict[str, Tensor], prefix: str, assign: bool = False) -> None:
        """Turn what else can be loaded into this module's own keys, in place; what is of another shape is left alone.

        With ``assign`` the new values have the device and dtype of the loaded ones, not the module's.
        """

    def holds_plain_kernel(self, state: dict[str, Tensor], prefix: str) -> bool:
        """Whether a state dict has a plain kernel of this module's shape under ``prefix``, and none of its branches."""
        return self._has_plain_kernel(state, prefix) and tuple(state[f'{prefix}weight'].shape) == self.plain_shape

    def _has_plain_kernel(self, state: dict[str, Tensor], prefix: str) -> bool:
        return f'{prefix}weight' in state and not any(f'{prefix}{name}' in state for name, _ in self.named_parameters() if name != 'bias')

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *found: list[str]
    ) -> None:
        self.adapt_state_dict(state_dict, prefix, local_metadata.get('assign_to_params_buffers', False))
        if self.holds_plain_kernel(state_dict, prefix):
            # Loaders that are not strict would drop it and train or test a network with random kernels.
            raise PlainKernelError(
                f'the checkpoint holds a plain kernel "{prefix}weight" where the model has a {type(self).__name__} with its training-time '
                'branches, and it cannot start from a plain kernel: it is a re-parameterized checkpoint, or one of a stock model. Load the '
                'training-form checkpoint, or use the stock config for this one (tools/model_converters/reparameterize_model.py writes it).'
            )
        if self._has_plain_kernel(state_dict, prefix):
            *_, errors = found
            errors.append(  # torch's words, for those who look for them
                f'size mismatch for {prefix}weight: copying a param with shape {state_dict[f"{prefix}weight"].shape} from checkpoint, '
                f'the shape in current model is {torch.Size(self.plain_shape)}.'
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *found)


def drawn_like(kernel: Any, like: Tensor) -> Any:
    """A copy of ``kernel`` with weights just drawn, in the dtype and on the device of ``like``."""
    copy = deepcopy(kernel).to_empty(device=like.device).to(like.dtype)
    copy.reset_parameters()
    return copy


def expand_in_state(kernel: Any, state: dict[str, Tensor], prefix: str, into: str, assign: bool, start: str = 'balanced') -> None:
    """Replace the plain kernel under ``prefix`` by branches of ``kernel`` that add up to it, under ``into``, in place.

    Raises:
        PlainKernelError: Where its branches cannot: without a plain branch, and in a stem with too few output channels.
    """
    weight = state[f'{prefix}weight']
    kernel = drawn_like(kernel, weight) if assign else deepcopy(kernel)
    try:
        kernel.represent(weight, start)
    except LayerError as error:
        remedy = '; set plain_stem=True of the backbone, which keeps it plain' if weight.shape[-1] >= 7 else ''
        raise PlainKernelError(f'"{prefix}weight": {error}{remedy}') from None
    for name in ('weight', 'gradient_matrix'):  # the latter of runs that kept it in the model
        state.pop(f'{prefix}{name}', None)
    state |= {f'{into}{key}': value for key, value in kernel.state_dict().items()}


def branches_in(state: dict[str, Tensor], prefix: str) -> tuple[str, ...]:
    """The branches of a kernel that a state dict has under ``prefix``; () where their scales are missing or do not match them."""

    def has(names: Any) -> bool:
        return all(f'{prefix}{name}' in state for name in names)

    names = tuple(name for name, weights in WEIGHTS.items() if has(weights) or (name == 'sequence' and has(POINTWISE)))
    scale = state.get(f'{prefix}scale')
    return names if scale is not None and scale.shape[:1] == (len(names),) else ()


def adapt_branches(kernel: Any, state: dict[str, Tensor], prefix: str, assign: bool) -> None:
    """:meth:`Adapting.adapt_state_dict` of an :class:`.OREPAKernel`.

    Kernels in the layout [O, I/g, k, k] and earlier names become what they are now, branches that the kernel lacks are added to the plain
    one, and those that the state dict lacks start at zero.
    """
    if kernel.holds_plain_kernel(state, prefix):  # of a plain stage
        expand_in_state(kernel, state, prefix, prefix, assign)
    _rename(state, prefix, kernel.groups, kernel.shape[1])
    for name in ('origin', 'seq_kxk'):
        weight = state.get(f'{prefix}{name}')
        if weight is not None and weight.dim() == 4 and kernel.kernel_size > 1:
            state[f'{prefix}{name}'] = rows_of(weight)
    there = branches_in(state, prefix)
    if there == kernel.branches or not {'origin'} <= {*there} & {*kernel.branches} or not _fits(kernel, state, prefix, there):
        return
    more, fewer = ([name for name in a if name not in b] for a, b in ((there, kernel.branches), (kernel.branches, there)))
    where = prefix.rstrip('.')
    if more:
        add_to_plain(kernel, state, prefix, more)
        logger.info('%s: the branches %s of the checkpoint were added to the plain one.', where, ', '.join(more))
    if fewer:
        _start_at_zero(drawn_like(kernel, state[f'{prefix}scale']) if assign else kernel, state, prefix, fewer)
        logger.info('%s: the branches %s, which the checkpoint lacks, start at zero.', where, ', '.join(fewer))


def _rename(state: dict[str, Tensor], prefix: str, groups: int, per_group: int) -> None:
    """Earlier files have the depthwise and pointwise weights as dw and pw, with the expansion fastest along the channels of a group."""
    if f'{prefix}dw' not in state or f'{prefix}pw' not in state:
        return
    dw, pw = state.pop(f'{prefix}dw'), state.pop(f'{prefix}pw')
    if dw.dim() == pw.dim() == 4 and len(dw) % (groups * per_group) == pw.shape[1] % per_group == 0:
        dw = dw.unflatten(0, (groups, per_group, -1)).transpose(1, 2).flatten(0, 2)
        pw = pw.unflatten(1, (per_group, -1)).transpose(1, 2).flatten(1, 2)
    state |= {f'{prefix}depthwise': dw, f'{prefix}pointwise': pw}


def _fits(kernel: Any, state: dict[str, Tensor], prefix: str, branches: tuple[str, ...]) -> bool:
    """Whether branches of a state dict are of this kernel's shape."""
    expansion = len(state.get(f'{prefix}depthwise', ())) // (kernel.shape[1] * kernel.groups)
    shapes = kernel.shapes(expansion) | dict(scale=(len(branches), kernel.shape[0]))
    names = ['scale', *(name for branch in branches for name in kernel.parameters_of(branch))]
    return all(tuple(state[f'{prefix}{name}'].shape) == shapes[name] for name in names)


@torch.no_grad()
def _start_at_zero(kernel: Any, state: dict[str, Tensor], prefix: str, names: list[str]) -> None:
    """Put branches of ``kernel`` that a state dict lacks into it so that they add nothing at first, in place."""
    rows = dict(zip(branches_in(state, prefix), state[f'{prefix}scale'], strict=True))
    for name in names:
        rows[name] = torch.full_like(rows['origin'], BALANCED[kernel.kernel_size == 1][name])
        weights = kernel.parameters_of(name)
        state |= {f'{prefix}{weight}': kernel.get_parameter(weight).detach().clone() for weight in weights}
        state[f'{prefix}{weights[-1]}'].zero_()
    state[f'{prefix}scale'] = torch.stack([rows[name] for name in BRANCHES if name in rows])


@torch.no_grad()
def add_to_plain(kernel: Any, state: dict[str, Tensor], prefix: str, names: list[str]) -> None:
    """Add branches of a state dict for ``kernel`` to the plain one and drop them, in place: the kernel stays, to rounding."""
    scale, origin = state[f'{prefix}scale'], state[f'{prefix}origin']
    rows = dict(zip(branches_in(state, prefix), scale, strict=True))
    weights = {name: state.pop(f'{prefix}{name}').double() for branch in names for name in kernel.parameters_of(branch)}
    prior = frequency_prior(kernel.shape[0], kernel.kernel_size, scale.device, torch.float64)
    added = kernel.as_branches(weights, torch.stack([rows.pop(name) for name in names]).double(), prior)
    plain, column = rows['origin'].double(), (-1, *[1] * (origin.dim() - 1))
    divisor = torch.where(plain.abs() < SMALLEST_SCALE, torch.ones_like(plain), plain)  # one where the plain branch is switched off
    whole = origin.double() * plain.view(column) + rows_of(squeeze_kxk(added, kernel.shape, kernel.groups)).view_as(origin)
    state[f'{prefix}origin'] = (whole / divisor.view(column)).to(origin.dtype)
    state[f'{prefix}scale'] = torch.stack([*(rows | dict(origin=divisor.to(scale.dtype))).values()])
