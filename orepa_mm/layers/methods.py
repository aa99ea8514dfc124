"""The layers a backbone can be built with, by the name of their method."""

from collections.abc import Callable
from typing import TypeVar

from .base import ReparameterizableConv2d

Layer = TypeVar('Layer', bound=type[ReparameterizableConv2d])

METHODS: dict[str, type[ReparameterizableConv2d]] = {}


def register_method(name: str) -> Callable[[Layer], Layer]:
    """Decorator of a layer: backbones and tools take it as ``method=name``, and a ``conv_cfg`` under the name of its class."""

    def register(layer: Layer) -> Layer:
        METHODS[name] = layer
        return layer

    return register
