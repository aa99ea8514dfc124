"""What ``conv_cfg=dict(type='OREPAConv2d')`` and the other layers' names build."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .base import ReparameterizableConv2d

PLAIN_ARGUMENTS = inspect.signature(nn.Conv2d).parameters


def conv_builder(layer: type[ReparameterizableConv2d]) -> Callable[..., nn.Module]:
    """The function that MM's registry knows under the name of ``layer``.

    It takes the arguments of ``layer`` and ``plain_sizes``, a tuple of kernel sizes to build as stock ``nn.Conv2d``: a whole backbone gets
    one ``conv_cfg``, and ``plain_sizes=(1,)`` keeps its 1x1 convolutions plain.
    """

    @functools.wraps(layer, updated=())
    def build(
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *args: Any,
        plain_sizes: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> nn.Module:
        sizes = {kernel_size} if isinstance(kernel_size, int) else set(kernel_size)
        if any(sizes == {plain} for plain in plain_sizes):
            plain_kwargs = {key: value for key, value in kwargs.items() if key in PLAIN_ARGUMENTS}
            return nn.Conv2d(in_channels, out_channels, kernel_size, *args, **plain_kwargs)
        return layer(in_channels, out_channels, kernel_size, *args, **kwargs)

    return build
