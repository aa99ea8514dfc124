"""The OREPA convolution layer."""

import torch
from torch import Tensor, nn

from .base import ReparameterizableConv2d, memory_format_of, memory_format_of_input
from .kernels import DeepLinearKernel, OREPAKernel, OREPAPointwiseKernel


class OREPAConv2d(ReparameterizableConv2d):
    """A convolution whose kernel is squeezed from parallel linear branches before every forward pass.

    The form follows from the kernel size: 1 x 1 has two branches, 3 x 3 and 5 x 5 have six, and from 7 x 7 on the kernel is a deep
    linear stem of stacked 3x3 OREPA kernels. Source: "Online Convolutional Re-parameterization", CVPR 2022, section 3.

    The squeezing runs in the parameters' dtype, under autocast too: it is cheap, and half precision there would round every branch.
    It costs the same in evaluation as in training: evaluate inside ``with orepa_mm.reparameterized(model):``.

    Usable wherever MM models take a ``conv_cfg``::

        conv_cfg=dict(type='OREPAConv2d')

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: As in
            ``nn.Conv2d``; the kernel must be square and odd.
        plain_stages: Build the stages of a deep linear stem as plain 3x3 kernels instead of OREPA ones.
        point_branch: False leaves the 1x1 branch of 3x3 and 5x5 kernels out, for blocks that have one of their own (OREPA-RepVGG).

    Shape:
        Input [N, I, H, W], output [N, O, H', W'] as ``nn.Conv2d``.

    Raises:
        LayerError: For an even or rectangular kernel, and where ``nn.Conv2d`` raises ``ValueError``.

    Example:
        >>> conv = OREPAConv2d(64, 128, kernel_size=3, stride=2, padding=1, bias=False)
        >>> conv.weight.shape
        torch.Size([128, 64, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        device=None,
        dtype=None,
        *,
        plain_stages: bool = False,
        point_branch: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.register_parameter('bias', nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None)
        size = self.kernel_size[0]
        shape = dict(in_channels=in_channels, out_channels=out_channels, groups=groups, device=device, dtype=dtype)
        if size == 1:
            self.kernel = OREPAPointwiseKernel(**shape)
        elif size < 7:
            self.kernel = OREPAKernel(kernel_size=size, point_branch=point_branch, **shape)
        else:
            self.kernel = DeepLinearKernel(kernel_size=size, plain_stages=plain_stages, **shape)

    def reset_parameters(self) -> None:
        self.kernel.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def memory_format(self) -> torch.memory_format:
        kernel = self.kernel.stages[0] if isinstance(self.kernel, DeepLinearKernel) else self.kernel
        return kernel.memory_format if isinstance(kernel, OREPAKernel) else memory_format_of(kernel)

    def equivalent_conv(self) -> tuple[Tensor, Tensor | None]:
        return self.kernel(self.memory_format), self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.kernel(memory_format_of_input(x)), self.bias)

    def extra_repr(self) -> str:
        return super().extra_repr() + (', bias=False' if self.bias is None else '')
