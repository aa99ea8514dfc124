"""Modules that hold the branch weights of one kernel and return the squeezed kernel when called."""

import logging
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError
from ..functional import (
    BRANCHES,
    Branches,
    add_identity,
    branch_kernels,
    closed_form_kxk,
    compose,
    frequency_prior,
    gradient_kxk,
    is_plain_eager,
    rows_of,
    shifts_and_kernel,
    squeeze_kxk,
    without_autocast,
)

logger = logging.getLogger(__name__)

# The parameters of each branch; with the last at zero it adds nothing. A 1x1 kernel has two branches, and the sequence other names.
PARAMETERS = dict(
    origin=('origin',),
    avg=('avg',),
    freq=('freq',),
    sequence=('seq_1x1', 'seq_kxk'),
    point=('point',),
    separable=('depthwise', 'pointwise'),
)
POINTWISE = dict(origin=('origin',), sequence=('first', 'second'))
PRESETS = {'full': BRANCHES, 'light': ('origin', 'avg', 'freq', 'point')}

# How the branches start that represent a given kernel: the scales of a k x k kernel and of a 1x1 kernel, None for the published
# ones. Those of "balanced" have squares that add up to about one: a branch moves the kernel by its scale squared times what a plain
# kernel's step would be, so the first steps are as long as the plain layer's at the same learning rate (in a product of kernels longer).
BALANCED = (
    dict(origin=0.8, avg=0.25, freq=0.25, sequence=0.5, point=0.25, separable=0.25),
    dict(origin=0.8, sequence=0.6),
)
STARTS: dict[str, tuple[dict[str, float] | None, dict[str, float] | None]] = {
    'balanced': BALANCED,
    'zeros': (None, None),
    'shared': (None, None),
}
SMALLEST_SCALE = 1e-2  # of a plain branch that more is moved into: dividing by less would lose digits
SHARE = 0.25  # of the kernel, for each branch that "shared" gives one


def branch_names(branches: str | Iterable[str]) -> tuple[str, ...]:
    """The branches of a k x k layer in the order of :data:`.BRANCHES`.

    Args:
        branches: Their names, or ``'full'`` or ``'light'``.

    Raises:
        LayerError: For a name that is unknown, and where there is none.
    """
    names = PRESETS.get(branches, (branches,)) if isinstance(branches, str) else tuple(branches)
    unknown = [name for name in names if name not in BRANCHES]
    if unknown or not names:
        raise LayerError(
            f'branches={branches!r}: {f"{unknown[0]!r} is unknown" if unknown else "none"}; choose from {", ".join(BRANCHES)}, '
            f'or one of the presets {" and ".join(map(repr, PRESETS))}'
        )
    return tuple(name for name in BRANCHES if name in names)


def pull_back_by_autograd(kernel: nn.Module, grad: Tensor) -> dict[str, Tensor]:
    """As :meth:`OREPAKernel.pull_back`, of any module that returns a kernel when it is called; parameters that are frozen are left out."""
    trained = {name: parameter for name, parameter in kernel.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        return dict(zip(trained, torch.autograd.grad(kernel(), list(trained.values()), grad), strict=True))


def drawn_like(kernel: Any, like: Tensor) -> Any:
    """A copy of ``kernel`` with weights just drawn, in the dtype and on the device of ``like``."""
    copy = deepcopy(kernel).to_empty(device=like.device).to(like.dtype)
    copy.reset_parameters()
    return copy


class PlainKernel(nn.Module):
    """One plain kernel [O, I/g, k, k], the stage of a deep linear stem without branches."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight)

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'balanced') -> None:
        self.weight.copy_(weight)

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        return self.weight.contiguous(memory_format=memory_format)


def branches_in(state: dict[str, Tensor], prefix: str) -> tuple[str, ...]:
    """The branches of a kernel that a state dict has under ``prefix``; () where their scales are not there or of other branches."""
    either = [*PARAMETERS.items(), *POINTWISE.items()]
    found = {name for name, parameters in either if all(f'{prefix}{each}' in state for each in parameters)}
    names = tuple(name for name in BRANCHES if name in found)
    scale = state.get(f'{prefix}scale')
    return names if scale is not None and len(scale) == len(names) else ()


def _scale_to_move_into(scale: Tensor) -> Tensor:
    """The scales [O] of a plain branch that more is moved into: one where it is switched off, as nothing could be moved otherwise."""
    return torch.where(scale.abs() < SMALLEST_SCALE, torch.ones_like(scale), scale)


class OREPAKernel(nn.Module):
    """The branches of a k x k kernel (paper, figure 3 and section 3.2).

    A 1x1 kernel has two: a plain one and two stacked ones, of which the square one starts as the identity.

    Args:
        branches: As for :func:`branch_names`; of a 1x1 kernel all but ``'sequence'`` are the plain branch. Without ``'point'`` smaller
            weights are drawn, as in the published OREPA-RepVGG, whose blocks have a 1x1 branch of their own.
        expansion: Depthwise channels per input channel in the separable branch.

    Kernels larger than 1x1 are stored in rows, as :class:`.Branches` describes; state dicts with kernels in the usual [O, I/g, k, k]
    load too, and those of a layer with more branches, which are added to the plain one, or with fewer, where the others start at zero.
    The call returns [O, I/g, k, k].

    Raises:
        LayerError: As :func:`branch_names`; and for the frequency prior alone where its pattern is zero for an output channel.
    """

    # False computes by the plain formula everywhere, with the same result.
    closed_form = True
    shape: tuple[int, int, int, int]
    origin: nn.Parameter | None
    avg: nn.Parameter | None
    freq: nn.Parameter | None
    seq_1x1: nn.Parameter | None
    seq_kxk: nn.Parameter | None
    point: nn.Parameter | None
    depthwise: nn.Parameter | None
    pointwise: nn.Parameter | None
    first: nn.Parameter | None
    second: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        branches: str | Iterable[str] = 'full',
        expansion: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.branches = branch_names(branches)
        if kernel_size == 1:
            plain, stacked = self.branches != ('sequence',), 'sequence' in self.branches
            self.branches = tuple(name for name, there in (('origin', plain), ('sequence', stacked)) if there)
        self.kernel_size, self.groups = kernel_size, groups
        self.expands = out_channels > in_channels
        in_per_group, taps = in_channels // groups, kernel_size * kernel_size
        self.shape = (out_channels, in_per_group, kernel_size, kernel_size)
        # With many groups the stacked branch is widened, or it would have next to no channels to mix.
        inner = in_channels if groups <= 4 else 2 * in_channels
        narrow = min(in_channels, out_channels)
        shapes: dict[str, tuple[int, ...]] = dict(
            origin=(out_channels, taps, in_per_group) if kernel_size > 1 else self.shape,
            first=(narrow, in_per_group, 1, 1),
            second=(out_channels, narrow // groups, 1, 1),
            avg=(out_channels, in_per_group, 1, 1),
            freq=(out_channels, in_per_group, 1, 1),
            seq_1x1=(inner, in_per_group, 1, 1),
            seq_kxk=(out_channels, taps, inner // groups),
            point=(out_channels, in_per_group, 1, 1),
            depthwise=(expansion * in_channels, 1, kernel_size, kernel_size),
            pointwise=(out_channels, expansion * in_per_group, 1, 1),
        )
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        own = {name for branch in self.branches for name in self.parameters_of(branch)}
        for name in (name for names in (*PARAMETERS.values(), POINTWISE['sequence']) for name in names):
            self.register_parameter(name, nn.Parameter(torch.empty(shapes[name], **options)) if name in own else None)
        self.scale = nn.Parameter(torch.empty(len(self.branches), out_channels, **options))
        if self.branches == ('freq',) and not frequency_prior(out_channels, kernel_size, 'cpu').abs().amax((1, 2)).gt(1e-6).all():
            raise LayerError(
                f'branches={branches!r}: the frequency prior of a {kernel_size}x{kernel_size} kernel is zero for some of {out_channels} '
                "output channels, which would stay zero; add another branch, such as 'origin'"
            )
        self.reset_parameters()

    def parameters_of(self, branch: str) -> tuple[str, ...]:
        """The names of a branch's parameters; with the last at zero it adds nothing, of a 1x1 kernel with the one that is not square."""
        if self.kernel_size == 1 and branch == 'sequence':
            return ('first', 'second') if self.expands else ('second', 'first')
        return PARAMETERS[branch]

    @property
    def initial_scale(self) -> dict[str, float]:
        """The published scales at the start."""
        if self.kernel_size == 1:
            return dict(origin=1.0, sequence=0.5)
        return dict(origin=0.25, avg=0.25, freq=0.0, sequence=0.5, point=1.0, separable=0.5)

    def _scale_rows(self, scales: dict[str, float]) -> None:
        for row, name in zip(self.scale, self.branches, strict=True):
            row.fill_(scales[name])

    def _stacked(self) -> Tensor:
        """Make the square one of a 1x1 kernel's two stacked weights the identity, and return the other."""
        square, other = (self.get_parameter(name) for name in self.parameters_of('sequence'))
        square.copy_(add_identity(torch.zeros_like(square)))
        return other

    @torch.no_grad()
    def reset_parameters(self) -> None:
        other = None if self.first is None else self._stacked()
        for weight in (self.origin, self.avg, self.freq, self.seq_kxk, self.depthwise, self.pointwise, self.point, other):
            if weight is not None:
                nn.init.kaiming_uniform_(weight, a=1 if self.point is None else 0)
        if self.seq_1x1 is not None:
            nn.init.zeros_(self.seq_1x1)
        self._scale_rows(self.initial_scale)

    @property
    def prior(self) -> Tensor | None:
        """:func:`.frequency_prior` in the dtype and on the device of the weights; None without that branch."""
        like = next(self.parameters(), self.scale)  # torch.fx puts a stand-in in the place of the attribute, and replicas have no others
        return None if self.freq is None else frequency_prior(self.shape[0], self.kernel_size, like.device, like.dtype)

    def adapt_state_dict(self, state: dict[str, Tensor], prefix: str, assign: bool = False) -> None:
        """Turn what else may be loaded into this module's own keys, in place; with ``assign`` on the device and in the dtype of that."""
        plain = state.get(f'{prefix}weight')
        if self.origin is not None and plain is not None and tuple(plain.shape) == self.shape:  # a plain stage
            copy = drawn_like(self, plain) if assign else deepcopy(self)
            copy.represent(plain)
            for name in ('weight', 'gradient_matrix'):  # the latter of runs that kept it in the model
                state.pop(f'{prefix}{name}', None)
            state |= {f'{prefix}{key}': value for key, value in copy.state_dict().items()}
        # Checkpoints with these names have the expansion fastest along the channels of a group, not slowest.
        if f'{prefix}dw' in state and f'{prefix}pw' in state:
            dw, pw = state.pop(f'{prefix}dw'), state.pop(f'{prefix}pw')
            per_group = self.shape[1]
            by_input = dw.unflatten(0, (self.groups, per_group, -1))
            state[f'{prefix}depthwise'] = by_input.transpose(1, 2).flatten(0, 2)
            state[f'{prefix}pointwise'] = pw.unflatten(1, (per_group, -1)).transpose(1, 2).flatten(1, 2)
        for name in ('origin', 'seq_kxk'):
            kernel = state.get(f'{prefix}{name}')
            if kernel is not None and kernel.dim() == 4 and self.kernel_size > 1:
                state[f'{prefix}{name}'] = rows_of(kernel)
        there = branches_in(state, prefix)
        fits = self.origin is not None and 'origin' in there and state[f'{prefix}origin'].shape == self.origin.shape
        if fits and there != self.branches:
            self._fold_branches(state, prefix, [name for name in there if name not in self.branches])
            drawn = drawn_like(self, state[f'{prefix}scale']) if assign else self
            drawn._start_branches(state, prefix, [name for name in self.branches if name not in there])

    @torch.no_grad()
    def _start_branches(self, state: dict[str, Tensor], prefix: str, names: list[str]) -> None:
        """Put branches that a state dict lacks into it so that they add up to nothing at first, in place."""
        if not names:
            return
        scale = state[f'{prefix}scale']
        rows = dict(zip(branches_in(state, prefix), scale, strict=True))
        for name in names:
            rows[name] = torch.full_like(rows['origin'], BALANCED[self.kernel_size == 1][name])
            parameters = self.parameters_of(name)
            state |= {f'{prefix}{parameter}': self.get_parameter(parameter).detach().clone() for parameter in parameters}
            state[f'{prefix}{parameters[-1]}'].zero_()
        state[f'{prefix}scale'] = torch.stack([rows[name] for name in BRANCHES if name in rows])
        logger.info('%s: the branches %s, which the checkpoint lacks, start at zero.', prefix.rstrip('.'), ', '.join(names))

    @torch.no_grad()
    def _fold_branches(self, state: dict[str, Tensor], prefix: str, others: list[str]) -> None:
        """Add branches of a state dict to the plain one and drop them, in place: the kernel stays, to rounding."""
        if not others:
            return
        there, scale = branches_in(state, prefix), state[f'{prefix}scale']
        shape, device = self.shape, scale.device
        weights = {name: state.pop(f'{prefix}{name}') for branch in others for name in self.parameters_of(branch)}
        rows = {branch: scale[row] for row, branch in enumerate(there)}
        if 'seq_1x1' in weights:
            weights['seq_1x1'] = add_identity(weights['seq_1x1'].double())
        if 'freq' in weights:
            weights['prior'] = frequency_prior(shape[0], self.kernel_size, device, torch.float64)
        if 'first' in weights:
            weights = dict(seq_1x1=weights['first'], seq_kxk=rows_of(weights['second']))
        weights = {name: weight.double() for name, weight in weights.items()}
        kernel = squeeze_kxk(Branches(scale=torch.stack([rows[name].double() for name in others]), **weights), shape, self.groups)
        plain, origin = rows['origin'].double(), state[f'{prefix}origin']
        divisor = _scale_to_move_into(plain)
        moved = origin.double() * plain.view(-1, *[1] * (origin.dim() - 1)) + rows_of(kernel).view_as(origin)
        state[f'{prefix}origin'] = (moved / divisor.view(-1, *[1] * (origin.dim() - 1))).to(origin.dtype)
        rows['origin'] = divisor.to(scale.dtype)
        state[f'{prefix}scale'] = torch.stack([rows[name] for name in there if name not in others])
        logger.info('%s: the branches %s of the checkpoint were added to the plain one.', prefix.rstrip('.'), ', '.join(others))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        self.adapt_state_dict(state_dict, prefix, local_metadata.get('assign_to_params_buffers', False))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'balanced') -> None:
        """Set the branches so that they add up to ``weight``, to rounding.

        Args:
            weight: [O, I/g, k, k].
            start: ``'balanced'`` or ``'zeros'``: the plain branch carries the kernel, all others start at zero (products with one factor
                at zero); with scales that keep a plain layer's learning rate, or with the published ones. ``'shared'``: the average
                pooling, sequence and 1x1 branches each take a share of what they can represent, the plain branch the rest.

        Raises:
            LayerError: Without a plain branch.
        """
        if self.origin is None:
            raise LayerError(f"the branches {', '.join(self.branches)} cannot add up to any given kernel; it takes 'origin'")
        exact = weight.double()
        scale = dict(STARTS[start][self.kernel_size == 1] or self.initial_scale)
        if torch.finfo(self.scale.dtype).bits < 32:
            scale['origin'] = 1.0  # in half precision the kernel itself, bit for bit: a scale and its inverse would round twice
        self._scale_rows(scale)
        stacked = None if self.first is None else self._stacked()
        frequency = self.freq if scale.get('freq') else None  # with a scale of zero it keeps its weights, or nothing would ever move it
        for branch in (self.origin, self.avg, frequency, self.seq_1x1, self.seq_kxk, self.pointwise, self.point, stacked):
            if branch is not None:
                branch.zero_()
        if start == 'shared':
            if self.avg is not None:
                self.avg.copy_(SHARE / scale['avg'] * exact.sum((2, 3), keepdim=True))
            if self.seq_kxk is not None:
                copies = self.get_parameter('seq_1x1').shape[0] // (self.shape[1] * self.groups)  # of each input channel in the sequence
                self.seq_kxk.copy_((SHARE / scale['sequence'] / copies * rows_of(exact)).repeat(1, 1, copies))
            if self.point is not None:
                centre = self.kernel_size // 2
                self.point.copy_(SHARE / scale['point'] * exact[:, :, centre, centre, None, None])
            if stacked is not None:
                stacked.copy_(SHARE / scale['sequence'] * exact)
            # From what the branches are after rounding, so that the rest makes up for it.
            exact = exact - squeeze_kxk(self._branches(torch.float64), self.shape, self.groups)
        self.origin.copy_(rows_of(exact / scale['origin']).view_as(self.origin))

    @torch.no_grad()
    def drop_branches(self, names: Iterable[str]) -> None:
        """Move branches into the plain one and drop them; the kernel stays, to rounding.

        The parameters that stay are the same objects, but for ``scale``, which loses rows.

        Raises:
            LayerError: Without a plain branch, and for the plain branch itself.
        """
        chosen = set(names)
        names = [name for name in self.branches if name in chosen]
        if self.origin is None or 'origin' in names:
            raise LayerError('branches are moved into origin, which stays')
        state = {name: parameter.detach() for name, parameter in self.named_parameters()}
        self._fold_branches(state, '', names)
        self.origin.copy_(state['origin'])
        self.scale = nn.Parameter(state['scale'].clone(), requires_grad=self.scale.requires_grad)
        for name in names:
            for parameter in self.parameters_of(name):
                setattr(self, parameter, None)
        self.branches = tuple(name for name in self.branches if name not in names)

    @torch.no_grad()
    def parts(self) -> dict[str, Tensor]:
        """What each branch adds to the kernel, in rows [O, k*k, I/g] and float64."""
        return branch_kernels(self._branches(torch.float64), self.shape, self.groups)

    def _branches(self, dtype: torch.dtype | None = None) -> Branches:
        def rows(weight: Tensor | None) -> Tensor | None:
            return weight if weight is None or self.kernel_size > 1 else weight.flatten(2).transpose(1, 2)

        weights = Branches(
            scale=self.scale,
            origin=rows(self.origin),
            avg=self.avg,
            freq=self.freq,
            prior=self.prior,
            seq_1x1=self.first if self.seq_1x1 is None else add_identity(self.seq_1x1),
            seq_kxk=rows(self.second) if self.seq_kxk is None else self.seq_kxk,
            depthwise=self.depthwise,
            pointwise=self.pointwise,
            point=self.point,
        )
        return weights if dtype is None else Branches._make(None if weight is None else weight.to(dtype) for weight in weights)

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        with without_autocast(self.scale):
            branches = self._branches()
            if self.closed_form and is_plain_eager(*branches):
                return closed_form_kxk(branches, self.shape, self.groups, memory_format)
            return squeeze_kxk(branches, self.shape, self.groups).contiguous(memory_format=memory_format)

    @torch.no_grad()
    def pull_back(self, grad: Tensor) -> dict[str, Tensor]:
        """Gradients of the parameters, by name, from that of the squeezed kernel [O, I/g, k, k]: the backward pass by itself."""
        found = gradient_kxk(grad, self._branches(), self.groups)._asdict()
        names = dict(first='seq_1x1', second='seq_kxk')
        return {name: found[names.get(name, name)].view_as(parameter) for name, parameter in self.named_parameters()}


class DeepLinearKernel(nn.Module):
    """A k x k kernel as (k - 1) / 2 stacked 3x3 kernels, the paper's deep linear stem (section 3.2).

    The call returns [O, I/g, k, k]; k is at least 5.

    Args:
        plain_stages: Plain 3x3 stages in place of OREPA ones.
        branches: Of the OREPA stages, as for :func:`branch_names`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        plain_stages: bool = False,
        branches: str | Iterable[str] = 'full',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.stages: Any  # whose items torch knows as nn.Module only
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        if not plain_stages:
            options['branches'] = branch_names(branches)
        stage = PlainKernel if plain_stages else OREPAKernel
        self.stages = nn.ModuleList(
            stage(in_channels if i == 0 else out_channels, out_channels, 3, groups, **options) for i in range((kernel_size - 1) // 2)
        )

    def reset_parameters(self) -> None:
        for stage in self.stages:
            stage.reset_parameters()

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'balanced') -> None:
        """As :meth:`OREPAKernel.represent`: the stages before the last only shift input channels, the last one holds the kernel.

        Raises:
            LayerError: When there are too few output channels for the shifts: :func:`.shifts_and_kernel` says how many it takes.
        """
        for stage, target in zip(self.stages, shifts_and_kernel(weight, self.groups), strict=True):
            stage.represent(target, start)

    @property
    def only_shifts(self) -> bool:
        """Whether the stages before the last only shift input channels, as :meth:`represent` leaves them."""
        return all((stage().count_nonzero((1, 2, 3)) <= 1).all() for stage in self.stages[:-1])

    def step(self) -> float:
        """How many times as far a step of gradient descent moves this kernel as one at the same learning rate moves a plain one.

        For a random gradient, the same in each call. After :meth:`represent` it grows with the kernel: each weight of the stages before
        the last moves all output channels.
        """
        moved = deepcopy(self).double().requires_grad_()
        before = moved().detach()
        gradient = torch.randn(before.shape, generator=torch.Generator().manual_seed(0), dtype=before.dtype).to(before.device)
        (moved() * gradient).sum().backward()
        rate = 1e-6  # small enough to stay at the slope, and far from rounding
        torch.optim.SGD(moved.parameters(), lr=rate).step()
        return ((moved() - before).norm() / (rate * gradient).norm()).item()

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        kernel = self.stages[0]()
        with without_autocast(kernel):
            for stage in self.stages[1:]:
                kernel = compose(kernel, stage(), self.groups)
        return kernel.contiguous(memory_format=memory_format)
