"""The expanded convolution of ExpandNets."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError
from ..functional import without_autocast
from .methods import register_method
from .squeezed_conv import SqueezedConv2d


def squeeze_expanded(first: Tensor, middle: Tensor, last: Tensor, groups: int = 1) -> Tensor:
    """One kernel [O, I/g, k, k] for convolutions in sequence with [r I, I/g, 1, 1], [r O, r I/g, k, k] and [O, r O/g, 1, 1]."""
    inputs, k = first.shape[1], middle.shape[2]
    a = first.reshape(groups, -1, inputs)
    # In rows, [g, rO/g, k*k, rI/g]: both products are then plain matrix products.
    b = middle.flatten(2).transpose(1, 2).reshape(groups, -1, k * k, middle.shape[1])
    c = last.reshape(groups, -1, last.shape[1])
    # The product that leaves fewer channels comes first.
    kernel = c @ (b @ a[:, None]).flatten(2) if inputs <= c.shape[1] else (c @ b.flatten(2)).unflatten(2, (k * k, -1)) @ a[:, None]
    return kernel.reshape(last.shape[0], k, k, inputs).permute(0, 3, 1, 2)


class ExpandedKernel(nn.Module):
    """The three kernels of an expanded convolution; the call returns [O, I/g, k, k]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        expansion: int = 4,
        **options: Any,
    ) -> None:
        super().__init__()
        self.groups = groups
        inner, outer = expansion * in_channels, expansion * out_channels

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, **options))

        self.first = weight(inner, in_channels // groups, 1, 1)
        self.middle = weight(outer, inner // groups, kernel_size, kernel_size)
        self.last = weight(out_channels, outer // groups, 1, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # No nonlinearity between them: the three together keep the variance as one convolution before a ReLU does.
        nn.init.kaiming_uniform_(self.first, a=1)
        nn.init.kaiming_uniform_(self.middle)
        nn.init.kaiming_uniform_(self.last, a=1)

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'balanced') -> None:
        """Set the kernels so that they multiply to ``weight``, [O, I/g, k, k], to rounding; there is one ``start`` only.

        The 1x1 kernels are drawn with orthonormal columns and rows, so that a step of the k x k kernel moves the product as a plain
        kernel's step would.
        """
        exact = weight.double().unflatten(0, (self.groups, -1))
        for kernel, inverse in ((self.first, 'goikl,gib->gobkl'), (self.last, 'goikl,gao->gaikl')):
            for group in kernel.flatten(1).unflatten(0, (self.groups, -1)):
                group.copy_(nn.init.orthogonal_(torch.empty(group.shape, device=group.device)))
            # Of what is stored, after rounding.
            pseudo_inverse = torch.linalg.pinv(kernel.double().flatten(1).unflatten(0, (self.groups, -1)))
            exact = torch.einsum(inverse, exact, pseudo_inverse)
        self.middle.copy_(exact.flatten(0, 1))

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        with without_autocast(self.middle):
            return squeeze_expanded(self.first, self.middle, self.last, self.groups).contiguous(memory_format=memory_format)


@register_method('ExpandNet')
class ExpandNetConv2d(SqueezedConv2d):
    """A convolution expanded into a 1x1, a k x k and a 1x1 convolution ("ExpandNets", NeurIPS 2020, section 3.1).

    There is no norm, bias or nonlinearity between the three, so their kernels are multiplied before each forward pass, and feature maps
    go through one convolution.

    Args:
        expansion: The expansion rate r, by which channels between the convolutions are more than before and behind them. The other
            arguments are those of ``nn.Conv2d``.

    Raises:
        LayerError: For an even or rectangular kernel, an expansion below 1, and where ``nn.Conv2d`` raises ``ValueError``.
    """

    key_mark = '.kernel.middle'
    kernel_keys = (('kernel.last', 'kernel.first'),)

    def build(self, shape: dict[str, Any], *, expansion: int = 4) -> None:
        if expansion < 1:
            raise LayerError(f'ExpandNetConv2d: expansion={expansion!r} must be at least 1')
        self.kernel = ExpandedKernel(expansion=expansion, **shape)
