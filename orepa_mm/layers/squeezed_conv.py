"""What the layers whose branches are squeezed into one kernel before every forward pass have in common."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError, PlainKernelError
from .adapting import expand_in_state
from .base import ReparameterizableConv2d, memory_format_of, memory_format_of_input, plain_conv, shape_of
from .kernels import check_start
from .squeeze_graph import Squeezes

logger = logging.getLogger(__name__)

INITS = (None, 'published', 'balanced')


@cache
def _say_passed_over(name: str) -> None:
    logger.warning(
        '%s: an initialiser of plain convolutions (init_cfg, model.apply) passes over its branches, which are drawn as published. With '
        "init='balanced' they start from the kernel it draws; init='published' says that this is meant.",
        name,
    )


class SqueezedConv2d(Squeezes, ReparameterizableConv2d):
    """Base of layers whose branches are linear: feature maps go through one convolution with the kernel that they add up to.

    The method ``build(shape, **options)`` of a subclass sets ``kernel``, a module that returns [O, I/g, k, k] when it is called with a
    memory format, and has ``reset_parameters()`` and ``represent(weight, start)``, which sets its branches so that they add up to a given
    kernel. Every such layer takes ``init`` and ``start``, as :class:`.OREPAConv2d` describes them.
    """

    build: Callable[..., None]
    kernel: Any
    init: str | None = None
    start = 'balanced'

    def add_branches(self, bias: bool, factory: dict[str, Any], init: str | None = None, start: str = 'balanced', **options: Any) -> None:
        if init not in INITS:
            raise LayerError(f'init={init!r} is unknown; choose from {", ".join(filter(None, INITS))}')
        check_start(start)
        self.init, self.start = init, start
        self.register_parameter('bias', nn.Parameter(torch.zeros(self.out_channels, **factory)) if bias else None)
        shape = dict(in_channels=self.in_channels, out_channels=self.out_channels, kernel_size=self.kernel_size[0], groups=self.groups)
        # Before the branches are drawn: the same kernel as a plain layer's from the same seed.
        plain = nn.Conv2d(**shape_of(self), **factory) if init == 'balanced' else None
        self.build(shape | factory, **options)
        if plain is not None:
            self._take(plain)

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
        layer = cls(**shape_of(conv), device=conv.weight.device, dtype=dtype or conv.weight.dtype, start=start, **options)
        layer.init = 'balanced'  # from now on: what initialises plain convolutions reaches it
        layer.kernel.represent(conv.weight, start)
        if not conv.weight.requires_grad:
            layer.kernel.requires_grad_(False)
        if conv.bias is not None:
            layer.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=conv.bias.requires_grad)
        return layer.to(memory_format=memory_format_of(conv)).train(conv.training)  # type: ignore[call-overload]  # torch's stub lacks it

    def write(self, name: str, value: Tensor) -> None:
        """As loading a plain kernel does: branches that add up to it."""
        self.kernel.represent(value, self.start)

    @torch.no_grad()
    def _take(self, conv: nn.Conv2d) -> None:
        """The kernel and bias of ``conv``."""
        self.kernel.represent(conv.weight, self.start)
        if self.bias is not None and conv.bias is not None:
            self.bias.copy_(conv.bias)

    def reset_parameters(self) -> None:
        like = next(self.kernel.parameters())
        plain = nn.Conv2d(**shape_of(self), device=like.device, dtype=like.dtype) if self.init == 'balanced' else None
        self.kernel.reset_parameters()
        if plain is not None:
            self._take(plain)
        elif self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def init_weights(self) -> Callable[[], None]:
        """Draw new weights. Not there with ``init='balanced'``: MM then draws the layer as it draws a plain convolution."""
        if self.init == 'balanced':
            raise AttributeError
        return self.reset_parameters

    def apply(self, fn: Callable[[nn.Module], None]) -> 'SqueezedConv2d':
        """As ``nn.Module.apply``; with ``init='balanced'`` the layer takes the kernel and bias that ``fn`` gives a plain convolution."""
        if self.init == 'published' or any(p.is_meta for p in self.parameters()):
            return super().apply(fn)
        with torch.no_grad():
            plain = plain_conv(self, *self.equivalent_conv(), self)
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        with torch.random.fork_rng(devices=[], enabled=self.init is None):  # what is not taken leaves other draws as they are
            plain.apply(fn)
        after = plain.state_dict()
        if before.keys() == after.keys() and not all(torch.equal(value, after[name]) for name, value in before.items()):
            if self.init == 'balanced':
                self._take(plain)
                return self
            _say_passed_over(type(self).__name__)
        return super().apply(fn)

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
        expand_in_state(self.kernel, state, prefix, f'{prefix}kernel.', assign, self.start)

    def equivalent_conv(self) -> tuple[Tensor, Tensor | None]:
        return self.kernel(self.memory_format), self.bias

    def squeeze(self, memory_format: torch.memory_format) -> Tensor:
        kernel: Tensor = self.kernel(memory_format)
        return kernel

    def forward(self, input: Tensor) -> Tensor:
        kernel = self.squeezed if self.squeezed is not None else self.squeeze(memory_format_of_input(input))
        return self._conv_forward(input, kernel, self.bias)
