"""How different the branches of a network are: shares of their kernels, cosines between them, scales, and what they add to a stem."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from orepa_mm.functional import BRANCHES, compose, kernel_of
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.layers.stem import DeepLinearKernel
from orepa_mm.reparam.prune import branch_shares, kernels_with_branches


@dataclass
class Diversity:
    """Of the kernels of a model, in the order of its modules.

    Attributes:
        names: The branches that any of them has.
        shares: The norm of each branch's part relative to the kernel's [kernels, branches]; NaN where a kernel does not have it.
        cosines: Between the parts of each pair of branches [kernels, branches, branches]; NaN where one is missing or zero.
        scales: By branch the magnitudes of its scales, those of all kernels one after the other.
    """

    names: list[str]
    shares: Tensor
    cosines: Tensor
    scales: dict[str, Tensor]


@torch.no_grad()
def branch_diversity(model: nn.Module) -> Diversity:
    """Compare the branches of each :class:`.OREPAConv2d` of a model."""
    kernels = [kernel for _, kernel in kernels_with_branches(model)]
    names = [name for name in BRANCHES if any(name in kernel.branches for kernel in kernels)]
    shares = torch.full((len(kernels), len(names)), torch.nan, dtype=torch.float64)
    cosines = shares[:, :, None].repeat(1, 1, len(names))
    scales: dict[str, list[Tensor]] = {name: [] for name in names}
    for row, (kernel, found) in enumerate(zip(kernels, branch_shares(model).values(), strict=True)):
        has = [names.index(name) for name in kernel.branches]
        parts = torch.stack([part.flatten() for part in kernel.parts().values()])
        directions = parts / parts.norm(dim=1, keepdim=True)  # 0 / 0 where a branch is zero: none, NaN
        cosines[row][torch.meshgrid(torch.tensor(has), torch.tensor(has), indexing='ij')] = directions @ directions.T
        shares[row, has] = torch.tensor([found[names[index]] for index in has], dtype=torch.float64)
        for name, scale in zip(kernel.branches, kernel.scale, strict=True):
            scales[name].append(scale.abs().double())
    return Diversity(names, shares, cosines, {name: torch.cat(values) for name, values in scales.items()})


@torch.no_grad()
def stem_parts(kernel: DeepLinearKernel) -> list[dict[str, Tensor]]:
    """What each branch of each stage of a deep linear stem adds to the whole kernel.

    The kernel is linear in each of its stages, so for every stage the parts of its branches add up to it.

    Returns:
        For each stage, from the input on, by branch its part [O, I/g, k, k] in float64; ``'plain'`` for a stage without branches.
    """
    stages = [stage().double() for stage in kernel.stages]
    found = []
    for index, module in enumerate(kernel.stages):
        parts = {name: kernel_of(part, 3) for name, part in module.parts().items()} if isinstance(module, OREPAKernel) else {}
        row = {}
        for name, part in (parts or {'plain': stages[index]}).items():
            chain = [*stages[:index], part, *stages[index + 1 :]]
            row[name] = reduce(lambda composed, stage: compose(composed, stage, kernel.groups), chain)
        found.append(row)
    return found
