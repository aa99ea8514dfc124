"""Squeezing: one kernel out of the weights of parallel linear branches.

Source: "Online Convolutional Re-parameterization" (CVPR 2022), section 3.2 (block linearization: a scale per output channel in place
of the norm of each branch) and section 3.3 (block squeezing). O and I are output and input channels, g groups, k the kernel size.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


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


def _per_channel(scale: Tensor) -> Tensor:
    return scale.view(-1, 1, 1, 1)


def squeeze_kxk(
    scale: Tensor,
    origin: Tensor,
    avg: Tensor,
    freq: Tensor,
    prior: Tensor,
    seq_1x1: Tensor,
    seq_kxk: Tensor,
    dw: Tensor,
    pw: Tensor,
    point: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """Squeeze the branches of a k x k layer: ``W = sum_b scale[b] * W_b``, ``scale[b]`` a factor per output channel.

    Args:
        scale: [6, O]; rows in the order plain, average pooling, frequency prior, 1x1 then k x k, 1x1, depthwise then pointwise.
            [5, O] without the 1x1 row where ``point`` is None.
        origin: Plain branch, [O, I/g, k, k].
        avg: 1x1 convolution before the average pooling, [O, I/g, 1, 1].
        freq: 1x1 convolution before the frequency prior, [O, I/g, 1, 1].
        prior: :func:`frequency_prior`, [O, k, k].
        seq_1x1: 1x1 convolution of the 1x1 then k x k branch with its identity added, [T, I/g, 1, 1].
        seq_kxk: k x k convolution after it, [O, T/g, k, k].
        dw: Depthwise convolution, [E I, 1, k, k], E the expansion; in a group, channel ``e I/g + i`` belongs to input channel i.
        pw: Pointwise convolution after it, [O, E I/g, 1, 1].
        point: 1x1 branch, added at the kernel's centre, [O, I/g, 1, 1], or None.
        groups: g.

    Returns:
        Kernel [O, I/g, k, k].
    """
    out_channels, in_per_group, k, _ = origin.shape
    rows = iter(scale.unbind(0))
    weight = origin * _per_channel(next(rows))
    weight = weight + avg * _per_channel(next(rows) / (k * k))
    weight = weight + freq * _per_channel(next(rows)) * prior.unsqueeze(1)

    out_per_group, taps = out_channels // groups, k * k
    first = seq_1x1.reshape(groups, -1, in_per_group)
    second = seq_kxk.reshape(groups, out_per_group, -1, taps)
    sequence = torch.einsum('gotp,gti->goip', second, first)
    weight = weight + sequence.reshape_as(origin) * _per_channel(next(rows))

    if point is not None:
        centre = k // 2
        weight = weight + F.pad(point * _per_channel(next(rows)), [centre] * 4)

    depthwise = dw.reshape(groups, -1, in_per_group, taps)
    pointwise = pw.reshape(groups, out_per_group, -1, in_per_group)
    separable = torch.einsum('goei,geip->goip', pointwise, depthwise)
    return weight + separable.reshape_as(origin) * _per_channel(next(rows))


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
    out_channels, in_per_group = origin.shape[:2]
    stacked = torch.bmm(second.reshape(groups, out_channels // groups, -1), first.reshape(groups, -1, in_per_group))
    return origin * _per_channel(scale[0]) + stacked.reshape_as(origin) * _per_channel(scale[1])


def compose(first: Tensor, second: Tensor, groups: int = 1) -> Tensor:
    """One kernel for two stacked convolutions of a deep linear stem (paper, section 3.2, "stem layer").

    ``second`` slides over ``first`` without being flipped, as in the published networks. The kernels this spans are the same as with
    the flip; trained weights depend on the convention.

    Args:
        first: [M, I/g, h, h].
        second: [O, M/g, k, k].
        groups: g.

    Returns:
        Kernel [O, I/g, h + k - 1, h + k - 1].
    """
    grown = F.conv2d(first.transpose(0, 1), second, padding=second.shape[-1] - 1, groups=groups)
    return grown.transpose(0, 1)
