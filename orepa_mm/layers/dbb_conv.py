"""The Diverse Branch Block, the baseline OREPA is measured against."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LayerError
from ..functional import average, fuse_norm, merge_1x1_kxk
from .base import PaddingMode, ReparameterizableConv2d

NORMS: dict[str, type[_BatchNorm]] = dict(BN=nn.BatchNorm2d, BN2d=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm)


def statistics_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance, [C]."""
    assert norm.running_mean is not None and norm.running_var is not None  # norms here are built with both
    return norm.running_mean, norm.running_var


def _at_zero(norm: _BatchNorm) -> Tensor:
    """What the norm with its running statistics makes of zero, [C]."""
    mean, variance = statistics_of(norm)
    return norm.bias - mean * norm.weight / (variance + norm.eps).sqrt()


def _pad(x: Tensor, norm: _BatchNorm, padding: tuple[int, int]) -> Tensor:
    """Pad normed maps with what zero padding before the norm would have become."""
    if padding == (0, 0):
        return x
    height, width = padding
    value = _at_zero(norm).to(x.dtype).view(1, -1, 1, 1)
    # Relative to that value the border is zero.
    return F.pad(x - value, [width, width, height, height]) + value


def _fold(weight: Tensor, norm: _BatchNorm, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return fuse_norm(weight, bias, *statistics_of(norm), norm.eps, norm.weight, norm.bias)


class DBBConv2d(ReparameterizableConv2d):
    """A convolution with the branches of a Diverse Branch Block ("Diverse Branch Block", CVPR 2021, section 3).

    Four branches run over the feature maps, each with norms of its own: k x k; 1x1 then average pooling; 1x1; 1x1 then k x k. A 1x1
    layer keeps the first only. The layer brings its norms along, so none should follow it. It equals a plain convolution in eval
    mode only.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, device, dtype: As in ``nn.Conv2d``; the
            kernel must be square and odd, the padding of numbers.
        bias: Ignored, as the norms shift the output; accepted because MM passes it.
        padding_mode: ``'zeros'`` only.
        norm_cfg: Norm of the branches, ``dict(type='BN')`` or ``dict(type='SyncBN')``.

    Shape:
        Input [N, I, H, W], output [N, O, H', W'] as ``nn.Conv2d``.

    Raises:
        LayerError: For arguments other than these.
    """

    padding: tuple[int, int]
    identity: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: PaddingMode = 'zeros',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        k = self.kernel_size[0]
        if padding_mode != 'zeros' or isinstance(self.padding, str):
            raise LayerError(f'DBBConv2d pads with numbers of zeros, got padding={padding!r}, padding_mode={padding_mode!r}')
        # The 1x1 branches see the input under the centre of the k x k kernel.
        reach = tuple(d * (k // 2) for d in self.dilation)
        self.centre_padding = tuple(p - r for p, r in zip(self.padding, reach, strict=True))
        if min(self.centre_padding) < 0:
            raise LayerError(f'DBBConv2d needs a padding of at least {reach}, or its 1x1 branches would be larger; got padding={padding}')
        norm = self._norm_class(norm_cfg)
        options: dict[str, Any] = dict(device=device, dtype=dtype)

        def conv(inner: int, outer: int, size: int) -> nn.Conv2d:
            return nn.Conv2d(inner, outer, size, groups=groups, bias=False, **options)

        self.origin, self.origin_norm = conv(in_channels, out_channels, k), norm(out_channels, **options)
        if k > 1:
            self.avg, self.avg_norm1, self.avg_norm2 = conv(in_channels, out_channels, 1), *(norm(out_channels, **options) for _ in '12')
            self.point, self.point_norm = conv(in_channels, out_channels, 1), norm(out_channels, **options)
            self.seq_1x1, self.seq_norm1 = conv(in_channels, in_channels, 1), norm(in_channels, **options)
            self.seq_kxk, self.seq_norm2 = conv(in_channels, out_channels, k), norm(out_channels, **options)
            per_group = in_channels // groups
            identity = torch.eye(per_group, **options).repeat(groups, 1).view(in_channels, per_group, 1, 1)
            self.register_buffer('identity', identity, persistent=False)
        self.reset_parameters()

    @staticmethod
    def _norm_class(norm_cfg: dict[str, Any] | None) -> type[_BatchNorm]:
        kind = (norm_cfg or {}).get('type', 'BN')
        if kind not in NORMS:
            raise LayerError(f'DBBConv2d folds batch norms only, got norm_cfg type {kind!r}; choose from {", ".join(NORMS)}')
        return NORMS[kind]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for module in self.children():
            assert isinstance(module, nn.Conv2d | _BatchNorm)
            module.reset_parameters()
        if hasattr(self, 'seq_1x1'):
            nn.init.zeros_(self.seq_1x1.weight)  # the branch starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.stride, self.padding, self.dilation, self.groups
        y = self.origin_norm(F.conv2d(x, self.origin.weight, None, stride, padding, dilation, groups))
        if not hasattr(self, 'avg'):
            return y
        pooled = _pad(self.avg_norm1(F.conv2d(x, self.avg.weight, groups=groups)), self.avg_norm1, padding)
        y = y + self.avg_norm2(self._average_pool(pooled))
        y = y + self.point_norm(F.conv2d(x, self.point.weight, None, stride, self.centre_padding, 1, groups))
        inner = self.seq_norm1(F.conv2d(x, self.seq_1x1.weight + self.identity, groups=groups))
        inner = _pad(inner, self.seq_norm1, padding)
        return y + self.seq_norm2(F.conv2d(inner, self.seq_kxk.weight, None, stride, 0, dilation, groups))

    def _average_pool(self, x: Tensor) -> Tensor:
        if self.dilation == (1, 1):
            return F.avg_pool2d(x, self.kernel_size, self.stride)
        height, width = self.kernel_size
        weight = x.new_full((x.shape[1], 1, height, width), 1 / (height * width))
        return F.conv2d(x, weight, None, self.stride, 0, self.dilation, x.shape[1])

    def equivalent_conv(self) -> tuple[Tensor, Tensor]:
        kernel, bias = _fold(self.origin.weight, self.origin_norm)
        if not hasattr(self, 'avg'):
            return kernel, bias
        k = self.kernel_size[0]
        averaged, averaged_bias = average(*_fold(self.avg.weight, self.avg_norm1), k)
        point, point_bias = _fold(self.point.weight, self.point_norm)
        first = _fold(self.seq_1x1.weight + self.identity, self.seq_norm1)
        branches = [
            _fold(averaged, self.avg_norm2, averaged_bias),
            (F.pad(point, [k // 2] * 4), point_bias),
            merge_1x1_kxk(*first, *_fold(self.seq_kxk.weight, self.seq_norm2), self.groups),
        ]
        for branch, shift in branches:
            kernel, bias = kernel + branch, bias + shift
        return kernel, bias

    @property
    def bias(self) -> Tensor:
        """The equivalent bias in eval mode, [O]."""
        return self.equivalent_conv()[1]
