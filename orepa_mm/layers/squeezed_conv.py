"""What the layers whose branches are squeezed into one kernel before every forward pass have in common."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PlainKernelError
from .adapting import expand_in_state
from .base import ReparameterizableConv2d, memory_format_of, memory_format_of_input, shape_of
from .squeeze_graph import Squeezes


class SqueezedConv2d(Squeezes, ReparameterizableConv2d):
    """Base of layers whose branches are linear: feature maps go through one convolution with the kernel that they add up to.

    The method ``build(shape, **options)`` of a subclass sets ``kernel``, a module that returns [O, I/g, k, k] when it is called with a
    memory format, and has ``reset_parameters()`` and ``represent(weight, start)``, which sets its branches so that they add up to a given
    kernel.
    """

    build: Callable[..., None]
    kernel: Any

    def add_branches(self, bias: bool, factory: dict[str, Any], **options: Any) -> None:
        self.register_parameter('bias', nn.Parameter(torch.zeros(self.out_channels, **factory)) if bias else None)
        shape = dict(in_channels=self.in_channels, out_channels=self.out_channels, kernel_size=self.kernel_size[0], groups=self.groups)
        self.build(shape | factory, **options)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, start: str = 'balanced', dtype: torch.dtype | None = None, **options: Any) -> 'SqueezedConv2d':
        """The layer that computes what ``conv`` computes, to rounding.

        Device, dtype, memory format, ``requires_grad`` and mode are those of ``conv``. The other branches' weights that are not zero at the
        start are drawn at random, so that training moves them.

        Args:
            conv: A plain convolution with a square odd kernel.
            start: As for :func:`orepa_mm.expand`.
            dtype: Of the branches; that of ``conv`` by default.
            options: Of the layer; ``branches`` with ``'origin'`` among them.

        Raises:
            LayerError: For a kernel that is not square and odd, for one of 7x7 or larger with fewer output channels than
                :func:`.shifts_and_kernel` needs, and for branches without ``'origin'``.
        """
        layer = cls(**shape_of(conv), device=conv.weight.device, dtype=dtype or conv.weight.dtype, **options)
        layer.kernel.represent(conv.weight, start)
        if not conv.weight.requires_grad:
            layer.kernel.requires_grad_(False)
        if conv.bias is not None:
            layer.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=conv.bias.requires_grad)
        return layer.to(memory_format=memory_format_of(conv)).train(conv.training)  # type: ignore[call-overload]  # torch's stub lacks it

    def write(self, name: str, value: Tensor) -> None:
        """As loading a plain kernel does: branches that add up to it."""
        self.kernel.represent(value)

    def reset_parameters(self) -> None:
        self.kernel.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def adapt_state_dict(self, state: dict[str, Tensor], prefix: str, assign: bool = False) -> None:
        """Turn a plain kernel into the branches that add up to it, in place: stock weights, and re-parameterized ones.

        Raises:
            PlainKernelError: For a kernel with a bias where the layer has none, and one that the branches cannot represent.
        """
        if not self.holds_plain_kernel(state, prefix):
            return
        if self.bias is None and f'{prefix}bias' in state:
            raise PlainKernelError(
                f'the plain kernel "{prefix}weight" of the checkpoint has a bias, and the layer has none: the checkpoint was deployed with '
                'its norms folded, and they are gone. Load the checkpoint it was made from.'
            )
        expand_in_state(self.kernel, state, prefix, f'{prefix}kernel.', assign)

    def equivalent_conv(self) -> tuple[Tensor, Tensor | None]:
        return self.kernel(self.memory_format), self.bias

    def squeeze(self, memory_format: torch.memory_format) -> Tensor:
        kernel: Tensor = self.kernel(memory_format)
        return kernel

    def forward(self, input: Tensor) -> Tensor:
        kernel = self.squeezed if self.squeezed is not None else self.squeeze(memory_format_of_input(input))
        return self._conv_forward(input, kernel, self.bias)
