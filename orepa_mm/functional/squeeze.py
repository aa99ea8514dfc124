"""Squeezing: one kernel out of the weights of parallel linear branches.

Source: "Online Convolutional Re-parameterization" (CVPR 2022), section 3.2 (block linearization: a scale per output channel in place
of the norm of each branch) and section 3.3 (block squeezing). O and I are output and input channels, g groups, k the kernel size.
"""

import math
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# The weights of each branch, by their names in Branches; with the last of them at zero it adds nothing.
WEIGHTS = dict(
    origin=('origin',),
    avg=('avg',),
    freq=('freq',),
    sequence=('seq_1x1', 'seq_kxk'),
    point=('point',),
    separable=('depthwise', 'pointwise'),
)
BRANCHES = tuple(WEIGHTS)


class Branches(NamedTuple):
    """The weights of a k x k layer's branches; those of a branch that is not there are None.

    Kernels are in rows: [O, k*k, I/g], input channels last. That is the memory of a ``channels_last`` kernel, in which the products below
    need no transposition.

    Attributes:
        scale: [B, O], a row for each of the B branches there are, in the order of :data:`BRANCHES`.
        origin: Plain branch, [O, k*k, I/g].
        avg: 1x1 convolution before the average pooling, [O, I/g, 1, 1].
        freq: 1x1 convolution before the frequency prior, [O, I/g, 1, 1].
        prior: :func:`frequency_prior`, [O, k, k].
        seq_1x1: 1x1 convolution of the sequence (1x1 then k x k) with its identity added, [T, I/g, 1, 1].
        seq_kxk: k x k convolution after it, [O, k*k, T/g].
        depthwise: Depthwise convolution of the separable branch, [E I, 1, k, k], E the expansion; in a group, channel ``e I/g + i``
            belongs to input channel i.
        pointwise: Pointwise convolution after it, [O, E I/g, 1, 1].
        point: 1x1 branch, added at the kernel's centre, [O, I/g, 1, 1].
    """

    scale: Tensor
    origin: Tensor | None = None
    avg: Tensor | None = None
    freq: Tensor | None = None
    prior: Tensor | None = None
    seq_1x1: Tensor | None = None
    seq_kxk: Tensor | None = None
    depthwise: Tensor | None = None
    pointwise: Tensor | None = None
    point: Tensor | None = None

    def scales(self) -> dict[str, Tensor]:
        """The row of ``scale`` of each branch there is, by its name."""
        there = [name for name, weights in WEIGHTS.items() if getattr(self, weights[-1]) is not None]
        return {name: self.scale[row] for row, name in enumerate(there)}


def rows_of(kernel: Tensor) -> Tensor:
    """A kernel [O, I/g, k, k] in rows, [O, k*k, I/g]."""
    return kernel.flatten(2).transpose(1, 2).contiguous()


def kernel_of(rows: Tensor, kernel_size: int) -> Tensor:
    """The inverse of :func:`rows_of`, a view."""
    return rows.view(rows.shape[0], kernel_size, kernel_size, rows.shape[2]).permute(0, 3, 1, 2)


def frequency_prior(
    out_channels: int, kernel_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Cosine patterns of the frequency prior branch.

    The first half of the output channels varies along the height, the second along the width, with rising frequency.

    Returns:
        [O, k, k].
    """
    device = torch.device(device or 'cpu')
    # Many devices have no float64, and a CUDA graph takes no copy from the CPU.
    options: Any = dict(device=device if device.type == 'cuda' else 'cpu', dtype=torch.float64)
    frequency = torch.arange(out_channels, **options) % (out_channels / 2) + 1
    position = torch.arange(0.5, kernel_size, **options)
    wave = torch.cos(math.pi * position * frequency[:, None] / kernel_size)
    columns, rows = wave[:, :, None].expand(-1, -1, kernel_size), wave[:, None].expand(-1, kernel_size, -1)
    half = (out_channels + 1) // 2
    return torch.cat([columns[:half], rows[half:]]).to(device, dtype or torch.get_default_dtype())


def _row(weight: Tensor, scale: Tensor) -> Tensor:
    """A 1x1 weight [O, I/g, 1, 1] scaled per output channel, as the only row of a kernel, [O, 1, I/g]."""
    return weight.flatten(2).transpose(1, 2) * scale.view(-1, 1, 1)


def branch_kernels(branches: Branches, shape: tuple[int, int, int, int], groups: int = 1) -> dict[str, Tensor]:
    """What each branch adds to the kernel, its scale included, in rows [O, k*k, I/g].

    Args:
        branches: The weights, of one branch at least.
        shape: Of the kernel, [O, I/g, k, k].
        groups: g.
    """
    b, (out_channels, inputs, k, _) = branches, shape
    per_group, taps = out_channels // groups, k * k
    scale = b.scales()
    kernels: dict[str, Tensor] = {}
    if b.origin is not None:
        kernels['origin'] = b.origin * scale['origin'].view(-1, 1, 1)
    if b.avg is not None:
        kernels['avg'] = _row(b.avg, scale['avg'] / taps).expand(-1, taps, -1)
    if b.freq is not None and b.prior is not None:
        kernels['freq'] = _row(b.freq, scale['freq']) * b.prior.flatten(1).unsqueeze(-1)
    if b.seq_1x1 is not None and b.seq_kxk is not None:
        first = b.seq_1x1.reshape(groups, -1, inputs)
        second = b.seq_kxk.reshape(groups, per_group * taps, -1)
        kernels['sequence'] = torch.bmm(second, first).reshape(out_channels, taps, inputs) * scale['sequence'].view(-1, 1, 1)
    if b.point is not None:
        kernels['point'] = F.pad(_row(b.point, scale['point']), [0, 0, taps // 2, taps // 2])
    if b.depthwise is not None and b.pointwise is not None:
        depthwise = b.depthwise.reshape(groups, -1, inputs, taps)
        pointwise = b.pointwise.reshape(groups, per_group, -1, inputs)
        separable = torch.einsum('goei,geip->gopi', pointwise, depthwise)
        kernels['separable'] = separable.reshape(out_channels, taps, inputs) * scale['separable'].view(-1, 1, 1)
    return kernels


def squeeze_kxk(branches: Branches, shape: tuple[int, int, int, int], groups: int = 1) -> Tensor:
    """The squeezed kernel of a k x k layer, [O, I/g, k, k]: ``W = sum_b scale[b] * W_b``, ``scale[b]`` a factor per output channel."""
    return kernel_of(reduce(torch.add, branch_kernels(branches, shape, groups).values()), shape[-1])


def compose(first: Tensor, second: Tensor, groups: int = 1) -> Tensor:
    """One kernel for two stacked convolutions of a deep linear stem (paper, section 3.2, "stem layer").

    ``second`` slides over ``first`` without being flipped, as in the published networks. The kernels this spans are the same as with
    the flip; trained weights depend on the convention.

    Args:
        first: [M, I/g, h, h].
        second: [O, M/g, 3, 3].
        groups: g.

    Returns:
        Kernel [O, I/g, h + 2, h + 2].
    """
    return F.conv2d(first.transpose(0, 1), second, padding=2, groups=groups).transpose(0, 1)
