"""What layers with branches compute, written out: each branch as convolutions of its own over the feature maps, all added up.

Slow, and for tests only: nothing is squeezed, so autograd gives the gradients of the plain formula.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.functional import kernel_of
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.layers.stem import DeepLinearKernel, PlainKernel


def written_out(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of an OREPA convolution, a Diverse Branch Block, a RepVGG block or a plain convolution for ``x``, [N, I, H, W]."""
    if isinstance(layer, OREPAConv2d):
        y = kernel_output(layer.kernel, padded(layer, x), layer.groups, layer.stride, layer.dilation)
        return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)
    if isinstance(layer, DBBConv2d):
        return diverse_branch_block(layer, x)
    if hasattr(layer, 'branch_3x3'):
        return repvgg_block(layer, x)
    return layer(x)


def padded(layer: nn.Module, x: Tensor) -> Tensor:
    reach = layer.padding
    if isinstance(reach, str):
        reach = [0 if reach == 'valid' else d * (k // 2) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
    return F.pad(x, (reach[1], reach[1], reach[0], reach[0]), mode=mode)


def kernel_output(kernel: nn.Module, x: Tensor, groups: int, stride, dilation) -> Tensor:
    """Of a padded input; the stages of a deep linear kernel after the first slide over it the other way round."""
    if isinstance(kernel, OREPAKernel) and kernel.kernel_size == 1:
        branches = []
        if kernel.origin is not None:
            branches.append(F.conv2d(x, kernel.origin, None, stride, groups=groups))
        if kernel.first is not None:
            branches.append(F.conv2d(F.conv2d(x, kernel.first, groups=groups), kernel.second, None, stride, groups=groups))
        return sum(scale.view(-1, 1, 1) * branch for scale, branch in zip(kernel.scale, branches, strict=True))
    if not isinstance(kernel, DeepLinearKernel):
        return stage_output(kernel, x, groups, False, stride, dilation)
    *inner, last = kernel.stages
    for number, stage in enumerate(inner):
        x = stage_output(stage, x, groups, number > 0, 1, dilation)
    return stage_output(last, x, groups, True, stride, dilation)


def stage_output(kernel: nn.Module, x: Tensor, groups: int, flip: bool, stride, dilation) -> Tensor:
    def spatial(x: Tensor, weight: Tensor, groups: int) -> Tensor:
        return F.conv2d(x, weight.flip(2, 3) if flip else weight, None, stride, 0, dilation, groups)

    if isinstance(kernel, PlainKernel):
        return spatial(x, kernel.weight, groups)
    assert isinstance(kernel, OREPAKernel)
    k, channels = kernel.kernel_size, kernel.scale.shape[1]
    mean, branches = x.new_full((channels, 1, k, k), 1 / k**2), []
    if kernel.origin is not None:
        branches.append(spatial(x, kernel_of(kernel.origin, k), groups))
    if kernel.avg is not None:
        branches.append(spatial(F.conv2d(x, kernel.avg, groups=groups), mean, channels))
    if kernel.freq is not None:
        branches.append(spatial(F.conv2d(x, kernel.freq, groups=groups), kernel.prior.unsqueeze(1), channels))
    if kernel.seq_kxk is not None:
        branches.append(spatial(F.conv2d(x, with_identity(kernel.seq_1x1), groups=groups), kernel_of(kernel.seq_kxk, k), groups))
    if kernel.point is not None:
        branches.append(spatial(x, F.pad(kernel.point, [k // 2] * 4), groups))
    if kernel.pointwise is not None:
        expansion = kernel.depthwise.shape[0] // x.shape[1]
        expanded = x.unflatten(1, (groups, 1, -1)).expand(-1, -1, expansion, -1, -1, -1).flatten(1, 3)  # every input channel, over and over
        branches.append(F.conv2d(spatial(expanded, kernel.depthwise, expanded.shape[1]), kernel.pointwise, groups=groups))
    return sum(scale.view(-1, 1, 1) * branch for scale, branch in zip(kernel.scale, branches, strict=True))


def with_identity(weight: Tensor) -> Tensor:
    return weight + nn.init.dirac_(torch.empty_like(weight), len(weight) // weight.shape[1])


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    return affine(norm, x, mean, var)


def affine(norm: nn.Module, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    mean, var, weight, bias = (value.view(-1, 1, 1) for value in (mean, var, norm.weight, norm.bias))
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


def bordered(norm: nn.Module, x: Tensor, padding) -> Tensor:
    """Normed maps, around them what the norm with its running statistics makes of zero, which as published is a constant."""
    height, width = padding
    border = affine(norm, torch.zeros_like(x[:1, :, :1, :1]), norm.running_mean, norm.running_var).detach()
    y = border.expand(len(x), -1, x.shape[2] + 2 * height, x.shape[3] + 2 * width).clone()
    y[:, :, height : height + x.shape[2], width : width + x.shape[3]] = normed(norm, x)
    return y


def diverse_branch_block(block: DBBConv2d, x: Tensor) -> Tensor:
    groups, geometry = block.groups, dict(stride=block.stride, dilation=block.dilation)
    y = normed(block.origin_norm, F.conv2d(padded(block, x), block.origin.weight, groups=groups, **geometry))
    k = block.kernel_size[0]
    if k == 1:
        return y
    averaged = bordered(block.avg_norm1, F.conv2d(x, block.avg.weight, groups=groups), block.padding)
    mean = x.new_full((averaged.shape[1], 1, k, k), 1 / k**2)
    y = y + normed(block.avg_norm2, F.conv2d(averaged, mean, groups=len(mean), **geometry))
    centre = F.pad(block.point.weight, [k // 2] * 4)
    y = y + normed(block.point_norm, F.conv2d(padded(block, x), centre, groups=groups, **geometry))
    first = bordered(block.seq_norm1, F.conv2d(x, with_identity(block.seq_1x1.weight), groups=groups), block.padding)
    return y + normed(block.seq_norm2, F.conv2d(first, block.seq_kxk.weight, groups=groups, **geometry))


def repvgg_block(block: nn.Module, x: Tensor) -> Tensor:
    y = normed(block.branch_3x3.norm, written_out(block.branch_3x3.conv, x))
    y = y + normed(block.branch_1x1.norm, written_out(block.branch_1x1.conv, x))
    if block.branch_norm is not None:
        y = y + normed(block.branch_norm, x)
    return (y if block.se_layer is None else block.se_layer(y)).relu()
