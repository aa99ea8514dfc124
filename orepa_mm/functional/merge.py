"""Merging stacked and parallel convolutions with biases, as a Diverse Branch Block needs (CVPR 2021, section 3.2)."""

import torch
from torch import Tensor

from .precision import without_autocast


def merge_1x1_kxk(first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """One convolution for a 1x1 and a k x k one after it, whose input is padded with ``first_bias``.

    Args:
        first: [M, I/g, 1, 1].
        first_bias: [M].
        second: [O, M/g, k, k].
        second_bias: [O].
        groups: g.

    Returns:
        Kernel [O, I/g, k, k] and bias [O].
    """
    out_channels, mid_per_group, k, _ = second.shape
    grouped = second.reshape(groups, out_channels // groups, mid_per_group, k * k)
    with without_autocast(first):
        kernel = torch.einsum('gotp,gti->goip', grouped, first.reshape(groups, mid_per_group, -1))
        bias = torch.einsum('gotp,gt->go', grouped, first_bias.reshape(groups, mid_per_group))
    return kernel.reshape(out_channels, -1, k, k), bias.reshape(out_channels) + second_bias


def average(first: Tensor, first_bias: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """As :func:`merge_1x1_kxk` for a k x k average pooling after a 1x1 convolution."""
    return first.expand(-1, -1, kernel_size, kernel_size) / kernel_size**2, first_bias


def add_identity(weight: Tensor) -> Tensor:
    """A 1x1 kernel [T, I/g, 1, 1] plus the one that hands its input channels on, over and over where T is larger than I."""
    inputs = weight.shape[1]
    identity = weight.new_ones(inputs, inputs).tril().triu()  # by methods, which torch.fx can follow, all of which ONNX has
    return (weight.reshape(-1, inputs, inputs) + identity).view_as(weight)
