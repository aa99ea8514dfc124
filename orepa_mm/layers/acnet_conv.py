"""The Asymmetric Convolution Block."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .methods import register_method
from .normed_conv import NormedConv2d, fold


@register_method('ACNet')
class ACNetConv2d(NormedConv2d):
    """A convolution with the branches of an Asymmetric Convolution Block ("ACNet", ICCV 2019, section 3.3).

    Three branches run over the feature maps, each with a norm of its own: k x k, 1 x k and k x 1; their outputs are summed. A 1x1 layer
    keeps the first only.
    The arguments are those of :class:`.NormedConv2d`.
    """

    key_mark = '.vertical_norm.'

    def build(self, norm: Callable[..., _BatchNorm], options: dict[str, Any]) -> None:
        k, channels = self.kernel_size[0], (self.in_channels, self.out_channels)
        self.origin, self.origin_norm = self._conv(*channels, k, options), norm(self.out_channels, **options)
        if k > 1:
            self.horizontal, self.horizontal_norm = self._conv(*channels, (1, k), options), norm(self.out_channels, **options)
            self.vertical, self.vertical_norm = self._conv(*channels, (k, 1), options), norm(self.out_channels, **options)

    def forward(self, input: Tensor) -> Tensor:
        stride, (height, width), dilation, groups = self.stride, self.padding, self.dilation, self.groups
        y: Tensor = self.origin_norm(F.conv2d(input, self.origin.weight, None, stride, self.padding, dilation, groups))
        if self.kernel_size[0] == 1:
            return y
        centre_height, centre_width = self.centre_padding
        y = y + self.horizontal_norm(F.conv2d(input, self.horizontal.weight, None, stride, (centre_height, width), dilation, groups))
        return y + self.vertical_norm(F.conv2d(input, self.vertical.weight, None, stride, (height, centre_width), dilation, groups))

    def equivalent_conv(self) -> tuple[Tensor, Tensor]:
        kernel, bias = fold(self.origin.weight, self.origin_norm)
        k = self.kernel_size[0]
        if k == 1:
            return kernel, bias
        row, row_bias = fold(self.horizontal.weight, self.horizontal_norm)
        column, column_bias = fold(self.vertical.weight, self.vertical_norm)
        margin = k // 2
        kernel = kernel + F.pad(row, [0, 0, margin, margin]) + F.pad(column, [margin, margin, 0, 0])
        return kernel, bias + row_bias + column_bias
