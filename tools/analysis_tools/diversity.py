"""How different the branches of a network are: shares of their kernels, cosines between them, scales, and what they add to a stem."""

from dataclasses import dataclass, field
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
        layers: Path of each kernel.
        shares: By branch the norm of its part relative to the kernel's, [kernels]; NaN where a kernel does not have it.
        cosines: By pair of branches the cosine between their parts, [kernels]; NaN where one of them is missing or zero.
        scales: By branch the magnitudes of its scales, those of all kernels one after the other.
    """

    layers: list[str] = field(default_factory=list)
    shares: dict[str, Tensor] = field(default_factory=dict)
    cosines: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def branch_diversity(model: nn.Module) -> Diversity:
    """Compare the branches of each :class:`.OREPAConv2d` of a model."""
    rows = []
    scales: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
    found = branch_shares(model)
    for _, kernel in kernels_with_branches(model):
        rows.append({name: part.flatten() for name, part in kernel.parts().items()})
        for name, row in zip(kernel.branches, kernel.scale, strict=True):
            scales[name].append(row.abs().double())
    names = [name for name in BRANCHES if any(name in parts for parts in rows)]
    nan = torch.tensor(float('nan'), dtype=torch.float64)
    shares = {name: torch.tensor([each.get(name, nan) for each in found.values()], dtype=torch.float64) for name in names}
    cosines = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            both = [(parts[a], parts[b]) if a in parts and b in parts else None for parts in rows]
            # 0 / 0 where a branch is zero: no direction, NaN.
            cosines[a, b] = torch.stack([nan if pair is None else pair[0] @ pair[1] / (pair[0].norm() * pair[1].norm()) for pair in both])
    return Diversity(list(found), shares, cosines, {name: torch.cat(scales[name]) for name in names})


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
