"""The Diverse Branch Block, the baseline OREPA is measured against."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..functional import add_identity, average, merge_1x1_kxk
from .methods import register_method
from .normed_conv import NormedConv2d, fold


def _pad(x: Tensor, norm: Any, padding: tuple[int, int]) -> Tensor:
    """Pad normed maps with what the norm with its running statistics makes of zero, a constant as in the published block."""
    if padding == (0, 0):
        return x
    height, width = padding
    border = F.pad(torch.zeros_like(x[:1, :1]), [width, width, height, height], value=1) > 0
    value = fold(torch.zeros_like(norm.running_mean), norm)[1].detach().view(1, -1, 1, 1)
    return torch.where(border, value.to(x.dtype), F.pad(x, [width, width, height, height]))


@register_method('DBB')
class DBBConv2d(NormedConv2d):
    """A convolution with the branches of a Diverse Branch Block ("Diverse Branch Block", CVPR 2021, section 3).

    Four branches run over the feature maps, each with norms of its own: k x k; 1x1 then average pooling; 1x1; 1x1 then k x k. A 1x1
    layer keeps the first only. The layer brings its norms along, so none should follow it. It equals a plain convolution in eval
    mode only.
    The arguments are those of :class:`.NormedConv2d`.
    """

    key_mark = '.seq_norm1.'

    def build(self, norm: Callable[..., _BatchNorm], options: dict[str, Any]) -> None:
        k, inner, outer = self.kernel_size[0], self.in_channels, self.out_channels
        self.origin, self.origin_norm = self._conv(inner, outer, k, options), norm(outer, **options)
        if k > 1:
            self.avg, self.avg_norm1, self.avg_norm2 = self._conv(inner, outer, 1, options), *(norm(outer, **options) for _ in '12')
            self.point, self.point_norm = self._conv(inner, outer, 1, options), norm(outer, **options)
            self.seq_1x1, self.seq_norm1 = self._conv(inner, inner, 1, options), norm(inner, **options)
            self.seq_kxk, self.seq_norm2 = self._conv(inner, outer, k, options), norm(outer, **options)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, 'seq_1x1'):
            nn.init.zeros_(self.seq_1x1.weight)  # the branch starts as the identity

    def forward(self, input: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.stride, self.padding, self.dilation, self.groups
        y = self.origin_norm(F.conv2d(input, self.origin.weight, None, stride, padding, dilation, groups))
        if not hasattr(self, 'avg'):
            return y
        pooled = _pad(self.avg_norm1(F.conv2d(input, self.avg.weight, groups=groups)), self.avg_norm1, padding)
        y = y + self.avg_norm2(self._average_pool(pooled))
        y = y + self.point_norm(F.conv2d(input, self.point.weight, None, stride, self.centre_padding, 1, groups))
        inner = self.seq_norm1(F.conv2d(input, add_identity(self.seq_1x1.weight), groups=groups))
        inner = _pad(inner, self.seq_norm1, padding)
        return y + self.seq_norm2(F.conv2d(inner, self.seq_kxk.weight, None, stride, 0, dilation, groups))

    def _average_pool(self, x: Tensor) -> Tensor:
        if self.dilation == (1, 1):
            return F.avg_pool2d(x, self.kernel_size, self.stride)
        height, width = self.kernel_size
        weight = x.new_full((x.shape[1], 1, height, width), 1 / (height * width))
        return F.conv2d(x, weight, None, self.stride, 0, self.dilation, x.shape[1])

    def equivalent_conv(self) -> tuple[Tensor, Tensor]:
        kernel, bias = fold(self.origin.weight, self.origin_norm)
        if not hasattr(self, 'avg'):
            return kernel, bias
        k = self.kernel_size[0]
        averaged, averaged_bias = average(*fold(self.avg.weight, self.avg_norm1), k)
        point, point_bias = fold(self.point.weight, self.point_norm)
        first = fold(add_identity(self.seq_1x1.weight), self.seq_norm1)
        branches = [
            fold(averaged, self.avg_norm2, averaged_bias),
            (F.pad(point, [k // 2] * 4), point_bias),
            merge_1x1_kxk(*first, *fold(self.seq_kxk.weight, self.seq_norm2), self.groups),
        ]
        for branch, shift in branches:
            kernel, bias = kernel + branch, bias + shift
        return kernel, bias
