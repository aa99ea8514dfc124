"""What the layers whose branches run over the feature maps, each with norms of its own, have in common."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LayerError
from ..functional import fuse_norm
from .base import PaddingMode, ReparameterizableConv2d

NORMS: dict[str, type[_BatchNorm]] = dict(BN=nn.BatchNorm2d, BN2d=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm)


def statistics_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance, [C]."""
    assert norm.running_mean is not None and norm.running_var is not None  # norms here are built with both
    return norm.running_mean, norm.running_var


def fold(weight: Tensor, norm: _BatchNorm, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Kernel and bias [O] of a convolution with the norm behind it, from its running statistics."""
    return fuse_norm(weight, bias, *statistics_of(norm), norm.eps, norm.weight, norm.bias)


class NormedConv2d(ReparameterizableConv2d):
    """Base of layers that bring their norms along: none should follow, and they equal a plain convolution in eval mode only.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, device, dtype: As in ``nn.Conv2d``; the
            kernel must be square and odd, the padding of numbers, and at least what keeps the size of the feature maps.
        bias: Ignored, as the norms shift the output; accepted because MM passes it.
        padding_mode: ``'zeros'`` only.
        norm_cfg: Norm of the branches, ``dict(type='BN')`` or ``dict(type='SyncBN')``.

    A subclass builds its branches in :meth:`build`.

    Raises:
        LayerError: For arguments other than these.
    """

    brings_norm = True

    padding: tuple[int, int]

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
        k, name = self.kernel_size[0], type(self).__name__
        if padding_mode != 'zeros' or isinstance(self.padding, str):
            raise LayerError(f'{name} pads with numbers of zeros, got padding={padding!r}, padding_mode={padding_mode!r}')
        # Branches with smaller kernels see the input under the centre of the k x k kernel.
        reach = tuple(d * (k // 2) for d in self.dilation)
        self.centre_padding = (self.padding[0] - reach[0], self.padding[1] - reach[1])
        if min(self.centre_padding) < 0:
            raise LayerError(f'{name} needs a padding of at least {reach}, or its smaller branches would be larger; got padding={padding}')
        kind = (norm_cfg or {}).get('type', 'BN')
        if kind not in NORMS:
            raise LayerError(f'{name} folds batch norms only, got norm_cfg type {kind!r}; choose from {", ".join(NORMS)}')
        self.build(NORMS[kind], dict(device=device, dtype=dtype))
        self.reset_parameters()

    def build(self, norm: type[_BatchNorm], options: dict[str, Any]) -> None:
        """Make the branches: convolutions and norms, with ``options`` as keyword arguments of each."""
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
        bias = self.equivalent_conv()[1]
        assert bias is not None
        return bias
