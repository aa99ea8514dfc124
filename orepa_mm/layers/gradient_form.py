"""Plain kernels that are trained with the gradients linear branches would give them."""

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import with_multiplied_gradient
from .base import shape_of
from .kernels import PlainKernel
from .squeeze_graph import Squeezes


class GradientFormConv2d(nn.Conv2d, Squeezes):
    """A plain convolution whose gradient is multiplied by a matrix, as :func:`orepa_mm.gradient_form` builds it.

    Parameters, forward pass and outputs are those of ``nn.Conv2d``; only ``weight.grad`` differs. :func:`orepa_mm.reparameterize` makes an
    ``nn.Conv2d`` of it.

    Args:
        args, kwargs: As for ``nn.Conv2d``; the kernel must be square.

    Attributes:
        gradient_matrix: Buffer [O, k*k, k*k], symmetric; the identity at first.

    Shape:
        As ``nn.Conv2d``.
    """

    gradient_matrix: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taps = self.kernel_size[0] * self.kernel_size[1]
        identity = torch.eye(taps, device=self.weight.device, dtype=self.weight.dtype)
        self.register_buffer('gradient_matrix', identity.repeat(self.out_channels, 1, 1))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, matrix: Tensor) -> 'GradientFormConv2d':
        """The layer with the parameters of ``conv``, the same objects, and a gradient matrix [O, k*k, k*k]."""
        layer = cls(**shape_of(conv), device='meta')
        layer.weight, layer.bias, layer.gradient_matrix = conv.weight, conv.bias, matrix
        layer.train(conv.training)
        return layer

    def squeeze(self, memory_format: torch.memory_format) -> Tensor:
        return with_multiplied_gradient(self.weight, self.gradient_matrix)

    def forward(self, input: Tensor) -> Tensor:
        kernel = self.squeezed if self.squeezed is not None else self.squeeze(torch.contiguous_format)
        return self._conv_forward(input, kernel, self.bias)


class GradientFormKernel(PlainKernel):
    """A plain kernel [O, I/g, k, k] whose gradient is multiplied by a matrix: the stage of a deep linear stem in gradient form.

    Args:
        weight: The kernel.
        matrix: [O, k*k, k*k], symmetric.
    """

    gradient_matrix: Tensor

    def __init__(self, weight: nn.Parameter, matrix: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], weight.shape[2], device='meta')
        self.weight = weight
        self.register_buffer('gradient_matrix', matrix)

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        return with_multiplied_gradient(self.weight, self.gradient_matrix).contiguous(memory_format=memory_format)
