"""Whether a stock model computes what the model with branches does: part by part, while the latter predicts."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import DeployError
from ..reparam import plan_swaps, reparameterize
from ..reparam.comparison import largest_difference, tensors
from .stock_state import stock_state

MOST = 16  # of the regions of interest, of which a head may get a thousand


class PartComparison:
    """Runs parts of both models on the inputs that those of the model with branches get.

    A part is the outermost module that is called and has layers with branches in it: the backbone, the neck, a head. It is compared in
    float32, and in float64 with plain kernels made anew from the same weights, so that an error in the arithmetic cannot hide behind
    rounding. Where its code cannot be run like this, the parts inside it are compared, down to a layer and its plain form.

    ``differences``: dtype -> the largest so far, relative to the scale of an output. ``unreached``: paths of the layers with branches that
    no part which was compared has in it.
    """

    def __init__(self, model: BaseModel, stock: BaseModel) -> None:
        self.model, self.stock = model, stock
        self.differences = {torch.float32: 0.0, torch.float64: 0.0}
        self.unreached = {swap.path for swap in plan_swaps(model)}
        self._layers = set(self.unreached)
        paths = {path[:end] for path in self._layers for end in (*(i for i, c in enumerate(path) if c == '.'), len(path))}
        self._parts = {model.get_submodule(path): path for path in paths}
        self._busy, self._done = False, list[str]()

    def run(self, data_batch: Any) -> None:
        """Predict, and compare each part on its first inputs."""
        self._done.clear()
        handle = register_module_forward_pre_hook(self._before)
        try:
            self.model.test_step(data_batch)
        except Exception:  # a prediction may need more than pictures; here it only has to get to the last part
            if self.unreached:
                raise
        finally:
            handle.remove()

    @torch.no_grad()
    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        path = self._parts.get(module)
        if path is None or self._busy or any(f'{path}.'.startswith(f'{done}.') for done in self._done):
            return
        self._busy = True
        try:
            found = {dtype: self._difference(module, path, dtype, args) for dtype in self.differences}
        except Exception:  # whatever the code of a toolbox raises outside of its own order of calls
            if path in self._layers:
                raise
            return
        finally:
            self._busy = False
        self._done.append(path)
        self.unreached = {layer for layer in self.unreached if not f'{layer}.'.startswith(f'{path}.')}
        for dtype, difference in found.items():
            self.differences[dtype] = max(self.differences[dtype], difference)

    def _difference(self, module: nn.Module, path: str, dtype: torch.dtype, args: tuple[Any, ...]) -> float:
        trained = deepcopy(module).to(dtype)
        other = reparameterize(deepcopy(trained))
        if path not in self._layers:
            plain, other = other, deepcopy(self.stock.get_submodule(path)).to(dtype)
            if dtype != torch.float32:
                other.load_state_dict(stock_state(plain, other))
        expected = _outputs(trained, args, dtype)
        if not expected:
            raise DeployError(f'"{path}" returns no tensors to compare.')
        return largest_difference(expected, _outputs(other, args, dtype))


def _outputs(part: nn.Module, args: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(tensors(part(*_few(args, dtype))))


def _few(value: Any, dtype: torch.dtype) -> Any:
    """A copy of the first ``MOST`` rows of each tensor, which may be written into."""
    if isinstance(value, Tensor):
        value = value[:MOST] if value.dim() else value
        return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
    if isinstance(value, dict):
        return {key: _few(item, dtype) for key, item in value.items()}
    return type(value)(_few(item, dtype) for item in value) if type(value) in (list, tuple) else value
