"""What the layers whose branches run over the feature maps, each with norms of its own, have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LayerError
from ..functional import fuse_norm
from .base import ReparameterizableConv2d
from .computed import computed

NORMS: dict[str, type[_BatchNorm]] = dict(BN=nn.BatchNorm2d, BN2d=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm)


def fold(weight: Tensor, norm: Any, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Kernel and bias [O] of a convolution with the norm behind it, from its running statistics."""
    return fuse_norm(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def norm_builder(norm_cfg: dict[str, Any] | None) -> Callable[..., _BatchNorm]:
    """The class of a ``norm_cfg`` with the other settings in it, as mmcv builds it.

    Raises:
        LayerError: For a norm that cannot be folded.
    """
    settings = dict(norm_cfg or {})
    kind, trained = settings.pop('type', 'BN'), settings.pop('requires_grad', True)
    norm = NORMS.get(kind, kind)
    if norm not in NORMS.values() or not settings.get('track_running_stats', True):
        raise LayerError(f'batch norms with running statistics are folded only, got norm_cfg={norm_cfg}; choose from {", ".join(NORMS)}')

    def build(channels: int, **options: Any) -> _BatchNorm:
        return norm(channels, **settings, **options).requires_grad_(trained)

    return build


class NormedConv2d(ReparameterizableConv2d):
    """Base of layers that bring their norms along: none should follow, and they equal a plain convolution in eval mode only.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, device, dtype: As in ``nn.Conv2d``; the kernel must be
            square and odd, the padding of numbers, and at least what keeps the size of the feature maps.
        bias: Ignored, as the norms shift the output; accepted because MM passes it.
        padding_mode: ``'zeros'`` only.
        norm_cfg: Norm of the branches, ``dict(type='BN')`` or ``dict(type='SyncBN')``, with ``requires_grad`` and settings of its class.

    Raises:
        LayerError: For arguments other than these.
    """

    brings_norm = True

    padding: tuple[int, int]

    def add_branches(self, bias: bool, factory: dict[str, Any], norm_cfg: dict[str, Any] | None = None) -> None:
        k, name = self.kernel_size[0], type(self).__name__
        if self.padding_mode != 'zeros' or isinstance(self.padding, str):
            raise LayerError(f'{name} pads with numbers of zeros, got padding={self.padding!r}, padding_mode={self.padding_mode!r}')
        # Branches with smaller kernels see the input under the centre of the k x k kernel.
        reach = tuple(d * (k // 2) for d in self.dilation)
        self.centre_padding = (self.padding[0] - reach[0], self.padding[1] - reach[1])
        if min(self.centre_padding) < 0:
            raise LayerError(f'{name} needs a padding of at least {reach}, or its smaller branches would be larger; got {self.padding}')
        self.build(norm_builder(norm_cfg), factory)
        self.reset_parameters()

    def build(self, norm: Callable[..., _BatchNorm], options: dict[str, Any]) -> None:
        """Make the branches: convolutions, and norms by ``norm(channels)``, with ``options`` as keyword arguments of each."""
        raise NotImplementedError

    def _conv(self, inner: int, outer: int, size: int | tuple[int, int], options: dict[str, Any]) -> nn.Conv2d:
        return nn.Conv2d(inner, outer, size, groups=self.groups, bias=False, **options)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for module in self.children():
            assert isinstance(module, nn.Conv2d | _BatchNorm)
            module.reset_parameters()

    @property
    def bias(self) -> Tensor:
        """The equivalent bias in eval mode, [O]."""
        return computed(cast(Tensor, self.equivalent_conv()[1]), partial(self.write, 'bias'))
