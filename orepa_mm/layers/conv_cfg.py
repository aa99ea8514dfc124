"""What a ``conv_cfg`` may say of the layers with branches beside their own arguments."""

import inspect
from typing import Any

from torch import nn

PLAIN_ARGUMENTS = inspect.signature(nn.Conv2d).parameters


class TakesPlainSizes(type):
    """Of classes of layers that take ``plain_sizes`` too, a tuple of kernel sizes to build as stock ``nn.Conv2d``.

    A whole backbone gets one ``conv_cfg``, and ``plain_sizes=(1,)`` keeps its 1x1 convolutions plain.
    """

    def __call__(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *args: Any,
        plain_sizes: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> Any:
        sizes = {kernel_size} if isinstance(kernel_size, int) else set(kernel_size)
        if any(sizes == {plain} for plain in plain_sizes):
            plain_kwargs = {key: value for key, value in kwargs.items() if key in PLAIN_ARGUMENTS}
            return nn.Conv2d(in_channels, out_channels, kernel_size, *args, **plain_kwargs)
        return super().__call__(in_channels, out_channels, kernel_size, *args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:  # what a layer itself takes
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])
