"""Squeezing a model's kernels by compiled passes, where that gives the same numbers in less time."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functional import without_autocast
from .kernels import OREPAKernel, OREPAPointwiseKernel

# How far rounding alone takes the two apart, relative to a kernel's or gradient's scale: dot products over thousands of weights.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass
class CompileReport:
    """What :func:`compile_squeezing` found.

    Attributes:
        compiled: Whether the model's kernels are squeezed by compiled passes from now on.
        layers: Number of kernels.
        reason: Why not, else an empty string.
        compile_seconds: Time that compiling took.
        eager_seconds, compiled_seconds: Time of squeezing all kernels, forward and backward; None where compiling failed.
        difference: Largest difference of a kernel or a gradient, relative to its scale.
    """

    compiled: bool
    layers: int
    reason: str = ''
    compile_seconds: float = 0.0
    eager_seconds: float | None = None
    compiled_seconds: float | None = None
    difference: float | None = None

    def __str__(self) -> str:
        if self.difference is None:
            return f'{self.layers} kernels are squeezed without compiling: {self.reason}.'
        figures = (
            f'{1e3 * self.compiled_seconds:.0f} ms a step against {1e3 * self.eager_seconds:.0f} ms, largest difference '
            f'{self.difference:.1e}, compiled in {self.compile_seconds:.0f} s'
        )
        if self.compiled:
            return f'{self.layers} kernels are squeezed by compiled passes: {figures}.'
        return f'{self.layers} kernels are squeezed without compiling, as the compiled passes {self.reason}: {figures}.'


def compile_squeezing(model: nn.Module) -> CompileReport:
    """Squeeze the kernels of a model by compiled passes if a compiler is there and they are faster here with the same numbers.

    Takes a minute at most; the model's parameters, gradients and the random state stay as they are. A training step gains most where
    squeezing weighs most: small batches and pictures. ``torch.compile`` of a whole model does not need this.

    Args:
        model: With OREPA layers, on the device it trains on.

    Returns:
        What was measured and decided.
    """
    kernels = _kernels(model)
    if not kernels:
        return CompileReport(False, 0, 'the model has no OREPA layer')
    _use(kernels, False)
    try:
        start = time.perf_counter()
        # The largest first: compilers take the first sizes they see for the usual ones.
        difference = max(_difference(kernel) for kernel in sorted(kernels, key=lambda kernel: -kernel.origin.numel()))
        compile_seconds = time.perf_counter() - start
        eager, compiled = _seconds(kernels)
    except Exception as error:  # compilers fail in many ways, and none of them should end a training
        _use(kernels, False)
        lines = str(error).strip().splitlines()
        return CompileReport(False, len(kernels), f'compiling failed ({type(error).__name__}: {lines[0] if lines else "no message"})')
    reason = ''
    if not difference <= TOLERANCES.get(kernels[0].origin.dtype, 1e-1):
        reason = 'give other numbers'
    elif compiled > eager:
        reason = 'are not faster'
    _use(kernels, not reason)
    return CompileReport(not reason, len(kernels), reason, compile_seconds, eager, compiled, difference)


def has_compilable_squeezing(model: nn.Module) -> bool:
    """Whether the model has OREPA layers."""
    return bool(_kernels(model))


def _kernels(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, OREPAKernel | OREPAPointwiseKernel)]


def _use(kernels: Iterable[nn.Module], compiled: bool) -> None:
    for kernel in kernels:
        kernel.compiled = compiled


def _squeezed(kernel: nn.Module) -> list[Tensor]:
    """The kernel and the gradients of its parameters, its own values taken as its gradient."""
    parameters = [p for p in kernel.parameters() if p.requires_grad]
    with without_autocast(next(kernel.parameters())), torch.enable_grad():
        weight = kernel()
        return [weight.detach(), *(torch.autograd.grad(weight, parameters, weight.detach()) if parameters else ())]


def _difference(kernel: nn.Module) -> float:
    results = []
    for compiled in (False, True):
        _use([kernel], compiled)
        results.append(_squeezed(kernel))
    return max(_relative(a, b) for a, b in zip(*results, strict=True))


def _relative(a: Tensor, b: Tensor) -> float:
    # Not a maximum of Python's, which loses NaN.
    return ((a - b).abs().amax() / a.abs().amax().clamp_min(torch.finfo(a.dtype).tiny)).item()


def _seconds(kernels: list[nn.Module], repeats: int = 5) -> tuple[float, float]:
    """Median time of squeezing all kernels without and with compiled passes, taking turns."""
    times = {False: [], True: []}
    device = kernels[0].origin.device
    for _ in range(repeats):
        for compiled, measured in times.items():
            _use(kernels, compiled)
            _synchronize(device)
            start = time.perf_counter()
            for kernel in kernels:
                _squeezed(kernel)
            _synchronize(device)
            measured.append(time.perf_counter() - start)
    return statistics.median(times[False]), statistics.median(times[True])


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
