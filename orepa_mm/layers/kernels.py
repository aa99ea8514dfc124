"""The kernel of an OREPA layer: holds the weights of its branches, and is squeezed when it is called."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError
from ..functional import (
    BRANCHES,
    WEIGHTS,
    Branches,
    add_identity,
    branch_kernels,
    closed_form_kxk,
    frequency_prior,
    gradient_kxk,
    is_plain_eager,
    rows_of,
    squeeze_kxk,
    without_autocast,
)
from .adapting import BALANCED, POINTWISE, Adapting, adapt_branches, add_to_plain

PRESETS = {'full': BRANCHES, 'light': ('origin', 'avg', 'freq', 'point')}

# The scales of the branches, of a k x k kernel and of a 1x1 kernel: as published, and for each start that represents a given kernel.
PUBLISHED: tuple[dict[str, float], dict[str, float]] = (
    dict(origin=0.25, avg=0.25, freq=0.0, sequence=0.5, point=1.0, separable=0.5),
    dict(origin=1.0, sequence=0.5),
)
STARTS = dict(balanced=BALANCED, zeros=PUBLISHED, shared=PUBLISHED)
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


def check_start(start: str) -> None:
    """Raise :class:`.LayerError` for a way to start from a given kernel that there is not."""
    if start not in STARTS:
        raise LayerError(f'start={start!r} is unknown; choose from {", ".join(STARTS)}')


def pull_back_by_autograd(kernel: nn.Module, grad: Tensor) -> dict[str, Tensor]:
    """As :meth:`OREPAKernel.pull_back`, of any module that returns a kernel when it is called; parameters that are frozen are left out."""
    trained = {name: parameter for name, parameter in kernel.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        return dict(zip(trained, torch.autograd.grad(kernel(), list(trained.values()), grad), strict=True))


class OREPAKernel(Adapting):
    """The branches of a k x k kernel (paper, figure 3 and section 3.2).

    A 1x1 kernel has two: a plain one and two stacked ones, of which the square one starts as the identity.

    Args:
        branches: As for :func:`branch_names`; of a 1x1 kernel all but ``'sequence'`` are the plain branch. Without ``'point'`` smaller
            weights are drawn, as in the published OREPA-RepVGG, whose blocks have a 1x1 branch of their own.
        expansion: Depthwise channels per input channel in the separable branch.
        options: ``device`` and ``dtype``.

    Kernels larger than 1x1 are stored in rows, as :class:`.Branches` describes. The call returns [O, I/g, k, k]. It also loads a plain
    kernel, kernels in the usual layout [O, I/g, k, k], and the state dict of a kernel with other branches: those it lacks are added to the
    plain one, and those the state dict lacks start at zero.

    Raises:
        LayerError: As :func:`branch_names`; and for the frequency prior alone where its pattern is zero for an output channel.
    """

    # False computes by the plain formula everywhere, with the same result.
    closed_form = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        branches: str | Iterable[str] = 'full',
        expansion: int = 8,
        **options: Any,
    ) -> None:
        super().__init__()
        self.branches = branch_names(branches)
        if kernel_size == 1:
            plain, stacked = self.branches != ('sequence',), 'sequence' in self.branches
            self.branches = tuple(name for name, there in (('origin', plain), ('sequence', stacked)) if there)
        self.kernel_size, self.groups = kernel_size, groups
        self.shape = self.plain_shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.expands = out_channels > in_channels
        own = {name for branch in self.branches for name in self.parameters_of(branch)}
        for name, shape in self.shapes(expansion).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **options)) if name in own else None)
        self.scale = nn.Parameter(torch.empty(len(self.branches), out_channels, **options))
        if self.branches == ('freq',) and not frequency_prior(out_channels, kernel_size, 'cpu').abs().amax((1, 2)).gt(1e-6).all():
            raise LayerError(
                f'branches={branches!r}: the frequency prior of a {kernel_size}x{kernel_size} kernel is zero for some of {out_channels} '
                "output channels, which would stay zero; add another branch, such as 'origin'"
            )
        self.reset_parameters()

    def shapes(self, expansion: int) -> dict[str, tuple[int, ...]]:
        """Of the parameters of all branches, in the order of a state dict."""
        out_channels, per_group, k, _ = self.shape
        in_channels, taps, point = per_group * self.groups, k * k, (out_channels, per_group, 1, 1)
        # With many groups the stacked branch is widened, or it would have next to no channels to mix.
        inner, narrow = in_channels if self.groups <= 4 else 2 * in_channels, min(in_channels, out_channels)
        return dict(
            origin=(out_channels, taps, per_group) if k > 1 else point,
            avg=point,
            freq=point,
            seq_1x1=(inner, per_group, 1, 1),
            seq_kxk=(out_channels, taps, inner // self.groups),
            point=point,
            depthwise=(expansion * in_channels, 1, k, k),
            pointwise=(out_channels, expansion * per_group, 1, 1),
            first=(narrow, per_group, 1, 1),
            second=(out_channels, narrow // self.groups, 1, 1),
        )

    def parameters_of(self, branch: str) -> tuple[str, ...]:
        """The names of a branch's parameters; with the last at zero it adds nothing, of a 1x1 kernel with the one that is not square."""
        if self.kernel_size == 1 and branch == 'sequence':
            return ('first', 'second') if self.expands else ('second', 'first')
        return WEIGHTS[branch]

    def _weight(self, branch: str) -> Any:
        return getattr(self, self.parameters_of(branch)[-1])

    def _start(self, scales: dict[str, float]) -> None:
        """Set the scales, and the square one of the two stacked weights to the identity."""
        for row, name in zip(self.scale, self.branches, strict=True):
            row.fill_(scales[name])
        if 'sequence' in self.branches:
            square = getattr(self, self.parameters_of('sequence')[0]).zero_()
            if self.kernel_size == 1:  # of larger kernels it is added in each call
                square.copy_(add_identity(square))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self._start(PUBLISHED[self.kernel_size == 1])
        square = self.parameters_of('sequence')[0]
        for name in ('origin', 'avg', 'freq', 'seq_kxk', 'depthwise', 'pointwise', 'point', 'first', 'second'):
            weight = getattr(self, name)
            if weight is not None and name != square:
                nn.init.kaiming_uniform_(weight, a=0 if 'point' in self.branches else 1)

    @property
    def prior(self) -> Tensor | None:
        """:func:`.frequency_prior` in the dtype and on the device of the weights; None without that branch."""
        like = next(self.parameters(), self.scale)  # torch.fx puts a stand-in in the place of the attribute, and replicas have no others
        return frequency_prior(self.shape[0], self.kernel_size, like.device, like.dtype) if 'freq' in self.branches else None

    def adapt_state_dict(self, state: dict[str, Tensor], prefix: str, assign: bool = False) -> None:
        adapt_branches(self, state, prefix, assign)

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
        if 'origin' not in self.branches:
            raise LayerError(f"the branches {', '.join(self.branches)} cannot add up to any given kernel; it takes 'origin'")
        exact = weight.double()
        scale = dict(STARTS[start][self.kernel_size == 1])
        if torch.finfo(self.scale.dtype).bits < 32:
            scale['origin'] = 1.0  # in half precision the kernel itself, bit for bit: a scale and its inverse would round twice
        self._start(scale)
        for branch in self.branches:
            if scale[branch]:  # at zero the frequency prior adds nothing, and without weights it would never move
                self._weight(branch).zero_()
        if start == 'shared':
            centre = self.kernel_size // 2
            shares = dict(avg=exact.sum((2, 3), keepdim=True), sequence=exact, point=exact[:, :, centre, centre, None, None])
            for branch, share in shares.items():
                if branch in self.branches:
                    part = self._weight(branch)
                    copies = part.numel() // share.numel()  # of each input channel in the sequence
                    part.copy_((SHARE / scale[branch] / copies * rows_of(share)).repeat(1, 1, copies).view_as(part))
            # From what the branches are after rounding, so that the rest makes up for it.
            exact = exact - squeeze_kxk(self._branches(torch.float64), self.shape, self.groups)
        origin = self._weight('origin')
        origin.copy_(rows_of(exact / scale['origin']).view_as(origin))

    @torch.no_grad()
    def drop_branches(self, names: Iterable[str]) -> None:
        """Add branches to the plain one and drop them; the kernel stays, to rounding.

        The parameters that stay are the same objects, but for ``scale``, which loses rows.

        Raises:
            LayerError: Without a plain branch, and for the plain branch itself.
        """
        chosen = set(names)
        names = [name for name in self.branches if name in chosen]
        if 'origin' not in self.branches or 'origin' in names:
            raise LayerError('branches are moved into origin, which stays')
        if not names:
            return
        state = {name: parameter.detach() for name, parameter in self.named_parameters()}
        add_to_plain(self, state, '', names)
        self._weight('origin').copy_(state['origin'])
        self.scale = nn.Parameter(state['scale'].clone(), requires_grad=self.scale.requires_grad)
        for name in (name for branch in names for name in self.parameters_of(branch)):
            setattr(self, name, None)
        self.branches = tuple(name for name in self.branches if name not in names)

    @torch.no_grad()
    def parts(self) -> dict[str, Tensor]:
        """What each branch adds to the kernel, in rows [O, k*k, I/g] and float64."""
        return branch_kernels(self._branches(torch.float64), self.shape, self.groups)

    def as_branches(self, weights: dict[str, Tensor], scale: Tensor, prior: Tensor | None) -> Branches:
        """The weights of some branches under this module's names for them, their scales, and the frequency prior."""
        if self.kernel_size == 1:
            weights = {POINTWISE.get(name, name): weight for name, weight in weights.items()}
            for name in ('origin', 'seq_kxk'):
                if name in weights:
                    weights[name] = weights[name].flatten(2).transpose(1, 2)
        elif 'seq_1x1' in weights:
            weights = weights | dict(seq_1x1=add_identity(weights['seq_1x1']))
        return Branches(scale=scale, prior=prior, **weights)

    def _branches(self, dtype: torch.dtype | None = None) -> Branches:
        weights = {name: getattr(self, name) for branch in self.branches for name in self.parameters_of(branch)}
        branches = self.as_branches(weights, self.scale, self.prior)
        return branches if dtype is None else Branches._make(None if weight is None else weight.to(dtype) for weight in branches)

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
        return {name: found[POINTWISE.get(name, name)].view_as(parameter) for name, parameter in self.named_parameters()}
