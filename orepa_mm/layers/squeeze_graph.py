"""All kernels of a model squeezed at once, by a CUDA graph.

Squeezing is many small operations, and a GPU does them faster than Python starts them: with ResNet-50 at batch 64 on a fast GPU, starting
them takes three times as long as the plain network's step. A CUDA graph starts them all at once.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from ..functional import is_plain_eager
from ..torch_versions import is_compiling
from .base import memory_format_of_input

logger = logging.getLogger(__name__)

MOST_CAPTURES = 5  # of one model; where its parameters keep moving a graph of them is of no use
Replay = Callable[[], None]


class Squeezes(nn.Module):
    """A layer whose kernel is computed from its parameters alone.

    Attributes:
        squeezed: The kernel of this forward pass, where it has been computed with those of other layers.
    """

    squeezed: Tensor | None = None

    def squeeze(self, memory_format: torch.memory_format) -> Tensor:
        """The kernel [O, I/g, k, k], differentiable in the layer's parameters."""
        raise NotImplementedError


def capture(call: Callable[[], list[Tensor]], pool: Any = None) -> tuple[list[Tensor], Replay, Any]:
    """Record what ``call`` does on a GPU.

    Returns:
        Its results; what computes them anew, into the same memory; and the memory pool.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those that load pictures, may go on meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode='thread_local'):
        results = call()
    return results, graph.replay, graph.pool()


def warm_up(call: Callable[[], object]) -> None:
    """Run what will be captured, beside the stream of the training: it compiles and allocates on first use, which a capture cannot."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)


class _Call(nn.Module):
    """Squeezes a layer when it is called."""

    def __init__(self, layer: Squeezes) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, memory_format: torch.memory_format) -> Tensor:
        return self.layer.squeeze(memory_format)


def _places_of(model: nn.Module, paths: Iterable[str]) -> list[tuple[nn.Module, str]]:
    """Each module on the way to ``paths``, as its parent and its name there."""
    places = {}
    for path in paths:
        parent, _, name = path.rpartition('.')
        while name:
            places[parent, name] = (model.get_submodule(parent), name)
            parent, _, name = parent.rpartition('.')
    return list(places.values())


def _set_squeezed(layer: Any, kernel: Tensor | None) -> None:
    # nn.Module looks whether it is a parameter, a buffer or a module, which for all layers takes half a millisecond of a step.
    object.__setattr__(layer, 'squeezed', kernel)


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return all(first == second for first, second, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size > 1)


class _Captured:
    """The squeezing of some layers of a model, forward and backward, as a graph over the memory of their parameters."""

    def __init__(self, model: nn.Module, layers: dict[str, Any], formats: dict[str, torch.memory_format]) -> None:
        self.layers = layers
        state = [
            (module, name, value)
            for layer in layers.values()
            for module in layer.modules()
            for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        ]
        self._values = [value for *_, value in state]
        self._places = [(module, name) for module, name, _ in state] + _places_of(model, layers)
        self._state = self._now()
        self._calls = [(_Call(layer), formats[path]) for path, layer in layers.items()]
        self._leaves: list[Tensor] = []
        self.parameters = list({id(value): value for value in self._values if value.requires_grad}.values())
        with torch.enable_grad():
            kernels = self._all_kernels()
            self._received = [torch.zeros_like(kernel) for kernel in kernels]
            # A bias takes part in no kernel.
            used = torch.autograd.grad(kernels, self._leaves, self._received, allow_unused=True)
            self.parameters = [value for value, grad in zip(self.parameters, used, strict=True) if grad is not None]
            del kernels, used
            warm_up(lambda: self._gradients(self._all_kernels()))
            self.kernels, self._squeeze, pool = capture(self._all_kernels)
            gradients, self._differentiate, _ = capture(lambda: self._gradients(self.kernels), pool)
        self._flat = [grad.as_strided((grad.numel(),), (1,)) for grad in gradients]
        offsets = accumulate((len(flat) for flat in self._flat), initial=0)
        self._views = [(tuple(p.shape), p.stride(), offset) for p, offset in zip(self.parameters, offsets, strict=False)]

    def _all_kernels(self) -> list[Tensor]:
        # Autograd waits for the stream in which a tensor without a history was first used, and the parameters were used in the stream of
        # the training, which is not the one that is captured: so these are new tensors, over the parameters' memory.
        leaves = {id(parameter): parameter.detach().requires_grad_() for parameter in self.parameters}
        self._leaves = list(leaves.values())
        kernels = []
        for call, memory_format in self._calls:
            weights = {name: leaves[id(p)] for name, p in call.named_parameters() if id(p) in leaves}
            kernels.append(functional_call(call, weights, (memory_format,)))
        return kernels

    def _gradients(self, kernels: list[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(kernels, self._leaves, self._received, retain_graph=True)
        # Gradients in another layout than their parameters' would be copied once more where they are accumulated.
        pairs = zip(found, self.parameters, strict=True)
        return [g if _same_layout(g, p) else torch.empty_like(p).copy_(g) for g, p in pairs]

    def is_valid(self) -> bool:
        """Whether model and layers are the same objects, with parameters in the same memory, as when it was captured."""
        return self._now() == self._state

    def _now(self) -> tuple[list[Any], list[int], list[bool]]:
        # Asked for in each step, while the GPU waits.
        return (
            [id(getattr(module, name)) for module, name in self._places],
            [value.data_ptr() for value in self._values],
            [value.requires_grad for value in self._values],
        )

    def squeeze(self) -> None:
        for layer, kernel in zip(self.layers.values(), _Replay.apply(self, *self.parameters), strict=True):
            _set_squeezed(layer, kernel)

    def forward(self) -> tuple[Tensor, ...]:
        self._squeeze()
        return tuple(kernel.detach() for kernel in self.kernels)

    def backward(self, received: Sequence[Tensor]) -> list[Tensor]:
        for mine, grad in zip(self._received, received, strict=True):
            mine.copy_(grad)
        self._differentiate()
        # The graph's own memory is written again in the next step, while gradients may be accumulated.
        found = torch.cat(self._flat)
        return [found.as_strided(*view) for view in self._views]

    def clear(self) -> None:
        for layer in self.layers.values():
            _set_squeezed(layer, None)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: _Captured, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.captured = captured
        return captured.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *received: Tensor) -> tuple[Tensor | None, ...]:
        # All that uses the kernels has been differentiated, what was recomputed for it included.
        ctx.captured.clear()
        return None, *ctx.captured.backward(received)


def can_capture(model: nn.Module) -> bool:
    """Whether it has layers that squeeze, and all its parameters are plain ones on one GPU."""
    parameters = list(model.parameters())
    on_gpu = all(p.is_cuda and is_plain_eager(p) and p.device == parameters[0].device for p in parameters)
    return on_gpu and any(isinstance(module, Squeezes) for module in model.modules())


class SqueezeGraph:
    """Squeezes the layers of a model together before each forward pass in training, until :meth:`remove`.

    The first forward pass shows which layers take part and in which memory format; from the second on a CUDA graph squeezes those whose
    kernels train. The numbers are those of the layers one by one. Where parameters are replaced or moved, as by pruning, it starts anew.
    In evaluation, without gradients, and while a compiler looks on, layers squeeze one by one as ever. Gradients of gradients are refused
    by torch with a message.

    Kernels and their gradients keep memory of their own: as much as the plain network's weights twice, and the branches' once.

    Args:
        model: One of which :func:`can_capture` is true. Its forward pass is where the kernels are computed: a backbone alone will do.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: nn.Module | None = model
        self._captured: _Captured | None = None
        self._captures = 0
        self._formats: dict[str, torch.memory_format] = {}  # of the layers' inputs, as seen in a forward pass
        self._observers: list[RemovableHandle] = []
        self._handle = model.register_forward_pre_hook(self._before)

    def __reduce__(self) -> Any:
        return _of_a_copy, ()

    def _before(self, model: nn.Module, args: Any) -> None:
        if model is not self.model or is_compiling():
            return
        if self._captured is not None:
            self._captured.clear()
        if not (model.training and torch.is_grad_enabled()):
            return
        if self._captured is not None and not self._captured.is_valid():
            self._captured = None
        if self._captured is None:
            self._prepare(model)
        if self._captured is not None:
            self._captured.squeeze()

    def _prepare(self, model: nn.Module) -> None:
        if not self._observers:
            self._observe(model)
            return
        self._stop_observing()
        layers = {path: model.get_submodule(path) for path in self._formats}
        layers = {path: layer for path, layer in layers.items() if any(p.requires_grad for p in layer.parameters())}
        reason = None if layers else 'no kernel trains'
        if layers:
            self._captures += 1
            try:
                self._captured = _Captured(model, layers, self._formats)
            except RuntimeError as error:  # what CUDA raises, out of memory included
                reason = str(error.__context__ or error).strip().splitlines()[0]  # the first error, and not that the capture ended
            if self._captures == MOST_CAPTURES:
                reason = f'{MOST_CAPTURES} times the parameters were replaced or moved'
        if reason:
            logger.warning('Layers squeeze one by one from now on, which takes longer: %s.', reason.rstrip('.'))
            self.remove()
        else:
            logger.info('The kernels of %d layers are squeezed by a CUDA graph.', len(layers))

    def _observe(self, model: nn.Module) -> None:
        self._formats = {}
        for path, module in model.named_modules():
            if isinstance(module, Squeezes):
                self._observers.append(module.register_forward_pre_hook(partial(self._see, path)))

    def _see(self, path: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            self._formats.setdefault(path, memory_format_of_input(args[0]))

    def _stop_observing(self) -> None:
        for handle in self._observers:
            handle.remove()
        self._observers = []

    def remove(self) -> None:
        """Let the layers squeeze one by one again."""
        self._stop_observing()
        self._handle.remove()
        if self._captured is not None:
            self._captured.clear()
            self._captured = None


def _of_a_copy() -> SqueezeGraph:
    """What a copy of a model, or a pickled one, has in its place: its layers squeeze one by one."""
    graph = SqueezeGraph(nn.Identity())
    graph.model = None
    return graph
