"""Squeezing: one kernel out of the weights of parallel linear branches.

Source: "Online Convolutional Re-parameterization" (CVPR 2022), section 3.2 (block linearization: a scale per output channel in place
of the norm of each branch) and section 3.3 (block squeezing). O and I are output and input channels, g groups, k the kernel size.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Branches(NamedTuple):
    """The weights of a k x k layer's branches.

    Kernels are in rows: [O, k*k, I/g], input channels last. That is the memory of a ``channels_last`` kernel, in which the products below
    need no transposition.

    Attributes:
        scale: [6, O]; rows in the order plain, average pooling, frequency prior, 1x1 then k x k, 1x1, depthwise then pointwise.
            [5, O] without the 1x1 row where ``point`` is None.
        origin: Plain branch, [O, k*k, I/g].
        avg: 1x1 convolution before the average pooling, [O, I/g, 1, 1].
        freq: 1x1 convolution before the frequency prior, [O, I/g, 1, 1].
        prior: :func:`frequency_prior`, [O, k, k].
        seq_1x1: 1x1 convolution of the 1x1 then k x k branch with its identity added, [T, I/g, 1, 1].
        seq_kxk: k x k convolution after it, [O, k*k, T/g].
        depthwise: Depthwise convolution, [E I, 1, k, k], E the expansion; in a group, channel ``e I/g + i`` belongs to input channel i.
        pointwise: Pointwise convolution after it, [O, E I/g, 1, 1].
        point: 1x1 branch, added at the kernel's centre, [O, I/g, 1, 1], or None.
    """

    scale: Tensor
    origin: Tensor
    avg: Tensor
    freq: Tensor
    prior: Tensor
    seq_1x1: Tensor
    seq_kxk: Tensor
    depthwise: Tensor
    pointwise: Tensor
    point: Tensor | None = None


def rows_of(kernel: Tensor) -> Tensor:
    """A kernel [O, I/g, k, k] in rows, [O, k*k, I/g]."""
    return kernel.flatten(2).transpose(1, 2).contiguous()


def kernel_of(rows: Tensor, kernel_size: int) -> Tensor:
    """The inverse of :func:`rows_of`, a view."""
    return rows.view(rows.shape[0], kernel_size, kernel_size, rows.shape[2]).permute(0, 3, 1, 2)


def frequency_prior(out_channels: int, kernel_size: int, device=None, dtype=None) -> Tensor:
    """Cosine patterns of the frequency prior branch.

    The first half of the output channels varies along the height, the second along the width, with rising frequency.

    Returns:
        [O, k, k].
    """
    half = out_channels / 2
    channel = torch.arange(out_channels, dtype=torch.float64)
    vertical = channel < half
    frequency = torch.where(vertical, channel + 1, channel + 1 - half)
    position = torch.arange(kernel_size, dtype=torch.float64) + 0.5
    wave = torch.cos(math.pi * position * frequency[:, None] / kernel_size)
    prior = torch.where(vertical[:, None, None], wave[:, :, None], wave[:, None, :])
    return prior.to(device=device, dtype=dtype or torch.get_default_dtype())


def _row(weight: Tensor, scale: Tensor) -> Tensor:
    """A 1x1 weight [O, I/g, 1, 1] scaled per output channel, as the only row of a kernel, [O, 1, I/g]."""
    return weight.flatten(2).transpose(1, 2) * scale.view(-1, 1, 1)


def squeeze_kxk(branches: Branches, kernel_size: int, groups: int = 1) -> Tensor:
    """Squeeze the branches of a k x k layer: ``W = sum_b scale[b] * W_b``, ``scale[b]`` a factor per output channel.

    Args:
        branches: The weights.
        kernel_size: k.
        groups: g.

    Returns:
        Kernel [O, I/g, k, k].
    """
    b, taps = branches, kernel_size * kernel_size
    out_channels, inputs = b.origin.shape[0], b.origin.shape[2]
    per_group = out_channels // groups
    scale = b.scale.unsqueeze(-1).unsqueeze(-1)
    weight = b.origin * scale[0] + _row(b.avg, b.scale[1] / taps) + _row(b.freq, b.scale[2]) * b.prior.flatten(1).unsqueeze(-1)

    first = b.seq_1x1.reshape(groups, -1, inputs)
    second = b.seq_kxk.reshape(groups, per_group * taps, -1)
    weight = weight + torch.bmm(second, first).reshape(out_channels, taps, inputs) * scale[3]

    if b.point is not None:
        weight = weight + F.pad(_row(b.point, b.scale[4]), [0, 0, taps // 2, taps // 2])

    depthwise = b.depthwise.reshape(groups, -1, inputs, taps)
    pointwise = b.pointwise.reshape(groups, per_group, -1, inputs)
    separable = torch.einsum('goei,geip->gopi', pointwise, depthwise)
    weight = weight + separable.reshape(out_channels, taps, inputs) * scale[-1]
    return kernel_of(weight, kernel_size)


def squeeze_1x1(scale: Tensor, origin: Tensor, first: Tensor, second: Tensor, groups: int = 1) -> Tensor:
    """Squeeze the branches of a 1x1 layer: ``W = scale[0] * origin + scale[1] * (second @ first)``.

    Args:
        scale: [2, O].
        origin: Plain branch, [O, I/g, 1, 1].
        first: First of two stacked 1x1 convolutions, [M, I/g, 1, 1].
        second: The 1x1 convolution after it, [O, M/g, 1, 1].
        groups: g.

    Returns:
        Kernel [O, I/g, 1, 1].
    """
    out_channels, inputs = origin.shape[0], origin.shape[1]
    stacked = torch.bmm(second.reshape(groups, out_channels // groups, -1), first.reshape(groups, -1, inputs))
    return origin * scale[0].view(-1, 1, 1, 1) + stacked.reshape(out_channels, inputs, 1, 1) * scale[1].view(-1, 1, 1, 1)


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
