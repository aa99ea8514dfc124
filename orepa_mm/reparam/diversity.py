"""How different the branches of a network are: shares of their kernels, cosines between them, scales."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..functional import BRANCHES
from .prune import kernels_with_branches


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
    rows, scales = [], {name: [] for name in BRANCHES}
    layers = []
    for path, kernel in kernels_with_branches(model):
        parts = {name: part.flatten() for name, part in kernel.parts().items()}
        rows.append((parts, sum(parts.values()).norm()))
        layers.append(path)
        for name, row in zip(kernel.branches, kernel.scale, strict=True):
            scales[name].append(row.abs().double())
    names = [name for name in BRANCHES if any(name in parts for parts, _ in rows)]
    nan = torch.tensor(float('nan'), dtype=torch.float64)
    shares = {name: torch.stack([parts[name].norm() / whole if name in parts else nan for parts, whole in rows]) for name in names}
    cosines = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            both = [(parts[a], parts[b]) if a in parts and b in parts else None for parts, _ in rows]
            # 0 / 0 where a branch is zero: no direction, NaN.
            cosines[a, b] = torch.stack([nan if pair is None else pair[0] @ pair[1] / (pair[0].norm() * pair[1].norm()) for pair in both])
    return Diversity(layers, shares, cosines, {name: torch.cat(scales[name]) for name in names})
