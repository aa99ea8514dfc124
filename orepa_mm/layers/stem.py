"""The kernel of a deep linear stem: stacked 3x3 kernels, with branches or plain."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import compose, shifts_and_kernel, without_autocast
from .kernels import OREPAKernel, branch_names


class PlainKernel(nn.Module):
    """One plain kernel [O, I/g, k, k], the stage of a deep linear stem without branches."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight)

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'balanced') -> None:
        self.weight.copy_(weight)

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        return self.weight.contiguous(memory_format=memory_format)


class DeepLinearKernel(nn.Module):
    """A k x k kernel as (k - 1) / 2 stacked 3x3 kernels, the paper's deep linear stem (section 3.2).

    The call returns [O, I/g, k, k]; k is at least 5.

    Args:
        plain_stages: Plain 3x3 stages in place of OREPA ones.
        branches: Of the OREPA stages, as for :func:`.branch_names`.
        options: ``device`` and ``dtype``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        plain_stages: bool = False,
        branches: str | Iterable[str] = 'full',
        **options: Any,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.stages: Any  # whose items torch knows as nn.Module only
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
        """As :meth:`.OREPAKernel.represent`: the stages before the last only shift input channels, the last one holds the kernel.

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
