"""The re-parameterized refocusing convolution."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import LayerError
from ..functional import without_autocast
from .methods import register_method
from .squeezed_conv import SqueezedConv2d

MAP_SIZE = 3


class RefocusedKernel(nn.Module):
    """A frozen kernel and a map over it; the call returns their sum, [O, I/g, k, k].

    The k x k slices of the basis are feature maps of a 3x3 convolution, and each becomes a sum over g of them: over all channels' in a
    depthwise layer (g x g x 9 weights), over itself where there is one group.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, **options: Any) -> None:
        super().__init__()
        self.groups = groups
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.basis = nn.Parameter(torch.empty(shape, **options), requires_grad=False)
        self.map = nn.Parameter(torch.empty(shape[0] * shape[1], groups, MAP_SIZE, MAP_SIZE, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.basis, a=5**0.5)  # as nn.Conv2d
        nn.init.zeros_(self.map)

    @torch.no_grad()
    def represent(self, weight: Tensor, start: str = 'zeros') -> None:
        """Take ``weight``, [O, I/g, k, k], as the basis, with a map of zeros; there is one ``start`` only."""
        self.basis.copy_(weight)
        self.map.zero_()

    def forward(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        with without_autocast(self.basis):
            slices = self.basis.flatten(0, 1)[None]
            learned = F.conv2d(slices, self.map, padding=MAP_SIZE // 2, groups=slices.shape[1] // self.groups)
            return (self.basis + learned.view_as(self.basis)).contiguous(memory_format=memory_format)


@register_method('RefConv')
class RefConv2d(SqueezedConv2d):
    """A convolution whose kernel is a frozen one and a learned map over it ("RefConv", TNNLS 2025, arXiv 2310.10563).

    The published use is of pretrained kernels in depthwise and 3x3 layers: the map starts at zero, and alone is trained. The arguments
    are those of ``nn.Conv2d``, for any number of groups.

    Raises:
        LayerError: For kernels of 1x1, whose slices have no neighbours to look at; for an even or rectangular one, and where ``nn.Conv2d``
            raises ``ValueError``.
    """

    key_mark = '.kernel.basis'
    kernel_keys = (('kernel.basis', 'kernel.basis'),)

    def build(self, shape: dict[str, Any]) -> None:
        if shape['kernel_size'] < MAP_SIZE:
            raise LayerError(f'RefConv2d: needs a kernel of at least {MAP_SIZE}x{MAP_SIZE}; a 1x1 kernel has nothing to refocus on')
        self.kernel = RefocusedKernel(**shape)
