"""Modules that hold the branch weights of one kernel and return the squeezed kernel when called."""

import torch
from torch import Tensor, nn

from ..functional import (
    Branches,
    closed_form_1x1,
    closed_form_kxk,
    compose,
    frequency_prior,
    is_plain_eager,
    rows_of,
    shifts_and_kernel,
    squeeze_1x1,
    squeeze_kxk,
    without_autocast,
)

POINT_ROW = 4  # of the 1x1 branch in the scales of an OREPAKernel

# How the branches start that represent a given kernel: the scales of an OREPAKernel and of an OREPAPointwiseKernel, None for the published
# ones. Those of "balanced" have squares that add up to about one: a branch moves the kernel by its scale squared times what a plain
# kernel's step would be, so the first steps are as long as the plain layer's at the same learning rate.
STARTS = {
    'balanced': ((0.8, 0.25, 0.25, 0.5, 0.25, 0.25), (0.8, 0.6)),
    'zeros': (None, None),
    'shared': (None, None),
}
SHARE = 0.25  # of the kernel, for each branch that "shared" gives one


class PlainKernel(nn.Module):
    """One plain kernel [O, I/g, k, k], the stage of a deep linear stem without branches."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, device=None, dtype=None) -> None:
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


class OREPAKernel(nn.Module):
    """The six branches of a k x k kernel (paper, figure 3 and section 3.2).

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: k, odd, at least 3.
        groups: g.
        point_branch: False leaves the 1x1 branch out and draws smaller weights, as in the published OREPA-RepVGG, whose blocks have
            a 1x1 branch of their own.
        expansion: Depthwise channels per input channel in the depthwise then pointwise branch.

    Kernels are stored in rows, as :class:`.Branches` describes; state dicts with kernels in the usual [O, I/g, k, k] load too.

    Shape:
        The call returns [O, I/g, k, k].
    """

    # False computes by the plain formula everywhere, with the same result.
    closed_form = True

    # plain, average pooling, frequency prior, 1x1 then k x k, 1x1, depthwise then pointwise
    initial_scale = (0.25, 0.25, 0.0, 0.5, 1.0, 0.5)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        point_branch: bool = True,
        expansion: int = 8,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        in_per_group = in_channels // groups
        # With many groups the stacked branch is widened, or it would have next to no channels to mix.
        inner = in_channels if groups <= 4 else 2 * in_channels

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        taps = kernel_size * kernel_size
        self.origin = weight(out_channels, taps, in_per_group)
        self.avg = weight(out_channels, in_per_group, 1, 1)
        self.freq = weight(out_channels, in_per_group, 1, 1)
        self.seq_1x1 = weight(inner, in_per_group, 1, 1)
        self.seq_kxk = weight(out_channels, taps, inner // groups)
        self.point = weight(out_channels, in_per_group, 1, 1) if point_branch else None
        self.depthwise = weight(expansion * in_channels, 1, kernel_size, kernel_size)
        self.pointwise = weight(out_channels, expansion * in_per_group, 1, 1)
        self.scale = weight(len(self.initial_scale) - (not point_branch), out_channels)
        # Constants follow from the shapes, so checkpoints do without them.
        self.register_buffer('prior', torch.empty(out_channels, kernel_size, kernel_size, device=device, dtype=dtype), persistent=False)
        self.register_buffer('identity', torch.empty(inner, in_per_group, 1, 1, device=device, dtype=dtype), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        branches = [self.origin, self.avg, self.freq, self.seq_kxk, self.depthwise, self.pointwise]
        scale = list(self.initial_scale)
        if self.point is None:
            del scale[POINT_ROW]
        else:
            branches.append(self.point)
        for weight in branches:
            nn.init.kaiming_uniform_(weight, a=0 if self.point is not None else 1)
        nn.init.zeros_(self.seq_1x1)
        for row, value in zip(self.scale, scale, strict=True):
            row.fill_(value)
        self.fill_constants()

    @torch.no_grad()
    def fill_constants(self) -> None:
        inner, in_per_group = self.identity.shape[:2]
        self.prior.copy_(frequency_prior(len(self.prior), self.kernel_size, dtype=torch.float64))
        self.identity.copy_(torch.eye(in_per_group).repeat(inner // in_per_group, 1).view_as(self.identity))

    def _apply(self, *args, **kwargs) -> 'OREPAKernel':
        # A cast would round the prior, and a cast back would not bring it back.
        super()._apply(*args, **kwargs)
        self.fill_constants()
        return self

    def adapt_state_dict(self, state: dict[str, Tensor], prefix: str) -> None:
        """Turn what else may be loaded into this module's own keys, in place."""
        # Checkpoints with these names have the expansion fastest along the channels of a group, not slowest.
        if f'{prefix}dw' in state and f'{prefix}pw' in state:
            dw, pw = state.pop(f'{prefix}dw'), state.pop(f'{prefix}pw')
            per_group = self.origin.shape[2]
            by_input = dw.unflatten(0, (self.groups, per_group, -1))
            state[f'{prefix}depthwise'] = by_input.transpose(1, 2).flatten(0, 2)
            state[f'{prefix}pointwise'] = pw.unflatten(1, (per_group, -1)).transpose(1, 2).flatten(1, 2)
        for name in ('origin', 'seq_kxk'):
            kernel = state.get(f'{prefix}{name}')
            if kernel is not None and kernel.dim() == 4:
                state[f'{prefix}{name}'] = rows_of(kernel)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        self.adapt_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'balanced') -> None:
        """Set the branches so that they add up to ``weight``, to rounding.

        Args:
            weight: [O, I/g, k, k].
            start: ``'balanced'`` or ``'zeros'``: the plain branch carries the kernel, all others start at zero (products with one factor
                at zero); with scales that keep a plain layer's learning rate, or with the published ones. ``'shared'``: the average
                pooling, sequence and 1x1 branches each take a share of what they can represent, the plain branch the rest.
        """
        exact = weight.double()
        scale = list(STARTS[start][0] or self.initial_scale)
        if torch.finfo(self.scale.dtype).bits < 32:
            scale[0] = 1.0  # in half precision the kernel itself, bit for bit: dividing by a scale and multiplying again would round twice
        if self.point is None:
            del scale[POINT_ROW]
        for row, value in zip(self.scale, scale, strict=True):
            row.fill_(value)
        frequency = (self.freq,) if scale[2] else ()  # with a scale of zero it keeps its weights, or nothing would ever move it
        for branch in (self.avg, *frequency, self.seq_1x1, self.seq_kxk, self.pointwise, self.point):
            if branch is not None:
                branch.zero_()
        self.origin.zero_()
        if start == 'shared':
            self.avg.copy_(SHARE / scale[1] * exact.sum((2, 3), keepdim=True))
            copies = self.seq_1x1.shape[0] // (self.origin.shape[2] * self.groups)  # of each input channel in the sequence
            self.seq_kxk.copy_((SHARE / scale[3] / copies * rows_of(exact)).repeat(1, 1, copies))
            if self.point is not None:
                centre = self.kernel_size // 2
                self.point.copy_(SHARE / scale[POINT_ROW] * exact[:, :, centre, centre, None, None])
            # From what the branches are after rounding, so that the rest makes up for it.
            exact = exact - squeeze_kxk(self._branches(torch.float64), self.kernel_size, self.groups)
        self.origin.copy_(rows_of(exact / scale[0]))

    def _branches(self, dtype: torch.dtype | None = None) -> Branches:
        weights = Branches(
            scale=self.scale,
            origin=self.origin,
            avg=self.avg,
            freq=self.freq,
            prior=self.prior,
            seq_1x1=self.seq_1x1 + self.identity,
            seq_kxk=self.seq_kxk,
            depthwise=self.depthwise,
            pointwise=self.pointwise,
            point=self.point,
        )
        return weights if dtype is None else Branches(*(None if weight is None else weight.to(dtype) for weight in weights))

    @property
    def memory_format(self) -> torch.memory_format:
        """The format asked for with ``.to(memory_format=...)``, of which kernels in rows know nothing."""
        return torch.contiguous_format if self.pointwise.stride(2) == 1 else torch.channels_last

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        with without_autocast(self.origin):
            branches = self._branches()
            if self.closed_form and is_plain_eager(*branches):
                return closed_form_kxk(branches, self.kernel_size, self.groups, memory_format)
            return squeeze_kxk(branches, self.kernel_size, self.groups).contiguous(memory_format=memory_format)


class OREPAPointwiseKernel(nn.Module):
    """The two branches of a 1x1 kernel: a plain one, and two stacked ones of which the square one starts as the identity.

    Shape:
        The call returns [O, I/g, 1, 1].
    """

    closed_form = True  # as in OREPAKernel

    initial_scale = (1.0, 0.5)

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1, device=None, dtype=None) -> None:
        super().__init__()
        self.groups = groups
        in_per_group, inner = in_channels // groups, min(in_channels, out_channels)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.origin = weight(out_channels, in_per_group, 1, 1)
        self.first = weight(inner, in_per_group, 1, 1)
        self.second = weight(out_channels, inner // groups, 1, 1)
        self.scale = weight(len(self.initial_scale), out_channels)
        self.expands = out_channels > in_channels
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.origin, a=1)
        nn.init.kaiming_uniform_(self._other(), a=1)
        for row, value in zip(self.scale, self.initial_scale, strict=True):
            row.fill_(value)

    def _other(self) -> Tensor:
        """Make the square one of the two stacked weights the identity, and return the other."""
        square, other = (self.first, self.second) if self.expands else (self.second, self.first)
        square.copy_(torch.eye(square.shape[1]).repeat(self.groups, 1).view_as(square))
        return other

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'balanced') -> None:
        """As :meth:`OREPAKernel.represent`; the square one of the stacked weights is the identity, the other starts at zero."""
        scale = list(STARTS[start][1] or self.initial_scale)
        if torch.finfo(self.scale.dtype).bits < 32:
            scale[0] = 1.0
        for row, value in zip(self.scale, scale, strict=True):
            row.fill_(value)
        exact, other = weight.double(), self._other()
        if start == 'shared':
            other.copy_(SHARE / scale[1] * exact)
            exact = exact - scale[1] * other.double()
        else:
            other.zero_()
        self.origin.copy_(exact / scale[0])

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        weights = (self.scale, self.origin, self.first, self.second)
        squeeze = closed_form_1x1 if self.closed_form and is_plain_eager(*weights) else squeeze_1x1
        with without_autocast(self.origin):
            return squeeze(*weights, self.groups).contiguous(memory_format=memory_format)


class DeepLinearKernel(nn.Module):
    """A k x k kernel as (k - 1) / 2 stacked 3x3 kernels, the paper's deep linear stem (section 3.2).

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: k, odd, at least 5.
        groups: g.
        plain_stages: Plain 3x3 stages in place of OREPA ones.

    Shape:
        The call returns [O, I/g, k, k].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        plain_stages: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.groups = groups
        stage = PlainKernel if plain_stages else OREPAKernel
        self.stages = nn.ModuleList(
            stage(in_channels if i == 0 else out_channels, out_channels, 3, groups, device=device, dtype=dtype)
            for i in range((kernel_size - 1) // 2)
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

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        kernel = self.stages[0]()
        with without_autocast(kernel):
            for stage in self.stages[1:]:
                kernel = compose(kernel, stage(), self.groups)
        return kernel.contiguous(memory_format=memory_format)
