"""How far layers and their plain forms are apart, on the inputs they get while the model runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import in_float32, under_autocast, without_autocast
from .convert import Swap


@dataclass
class Difference:
    """Between the outputs of one layer's two forms.

    Attributes:
        largest: Relative to the output's largest magnitude; inf where a value is not finite.
        parameter: One of the layer, for dtype and device of the arithmetic.
    """

    largest: float
    parameter: Tensor


def tensors(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors of a nested structure, in a fixed order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def largest_difference(expected: Any, actual: Any) -> float:
    """The largest difference of two nested structures, each tensor's relative to its own largest magnitude; inf where one is not finite."""
    largest = 0.0
    for a, b in zip(tensors(expected), tensors(actual), strict=True):
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        if not (a.isfinite().all() and b.isfinite().all()):
            return float('inf')
        largest = max(largest, ((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(torch.float32).tiny)).item())
    return largest


def _as_dtype(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class LayerComparison:
    """Runs the plain form of each layer beside it, until :meth:`stop`.

    It needs to know nothing of the model: whatever runs it, each layer is compared on the inputs it gets. Values in half precision must be
    finite, but half precision rounds more than most faults change: there the two forms run once more in float32.

    Args:
        swaps: The layers, all in the model.

    Attributes:
        differences: Path of a layer -> what was found so far. Layers that have not been called are not in it.
    """

    def __init__(self, swaps: Iterable[Swap]) -> None:
        self.differences: dict[str, Difference] = {}
        layers = {id(swap.old): swap for swap in swaps}  # a shared layer once
        # First among the hooks of a layer: others may change the output.
        self._handles = [
            swap.old.register_forward_hook(partial(self._compare, swap), prepend=True, with_kwargs=True) for swap in layers.values()
        ]

    @torch.no_grad()
    def _compare(self, swap: Swap, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # forward, as calling it would run the layer's hooks again, which its plain form shares
        largest = largest_difference(output, swap.new.forward(*args, **kwargs))
        parameter = next(layer.parameters())
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if largest < float('inf') and (parameter.dtype != dtype or under_autocast(parameter)):
            args = tuple(_as_dtype(value, dtype) for value in args)
            kwargs = {name: _as_dtype(value, dtype) for name, value in kwargs.items()}
            layer, plain = in_float32(layer), in_float32(swap.new)
            with without_autocast(parameter):
                largest = largest_difference(layer.forward(*args, **kwargs), plain.forward(*args, **kwargs))
        seen = self.differences.get(swap.path)
        if seen is None or largest > seen.largest:
            self.differences[swap.path] = Difference(largest, parameter)

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
