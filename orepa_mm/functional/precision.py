"""Under which conditions a kernel is squeezed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # the compiler of older torch stops at the call
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Switches autocast off on the device of ``tensor``: half precision would round every branch, and squeezing is cheap."""
    if not isinstance(tensor, Tensor):  # a stand-in while torch.fx traces
        return nullcontext()
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


@contextmanager
def in_float32(*modules: nn.Module) -> Iterator[None]:
    """Parameters and buffers in half precision hold their values in float32 meanwhile, so that sums are rounded once, by the caller."""
    values = {id(value): value for module in modules for value in (*module.parameters(), *module.buffers())}
    narrow = [(value, value.data) for value in values.values() if value.dtype in (torch.float16, torch.bfloat16)]
    try:
        for value, data in narrow:
            value.data = data.float()
        yield
    finally:
        for value, data in narrow:
            value.data = data


def under_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of ``tensor``."""
    kind = tensor.device.type
    return _has_autocast(kind) and torch.is_autocast_enabled(kind)


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether torch just computes with these tensors.

    False where something looks on or takes over: tracers, exporters and compilers (which may drop what a custom autograd function writes
    in place, or stop at it), ``torch.func`` and vmap, and tensors of other classes (DTensor, FakeTensor, torch.fx's stand-ins).
    """
    watched: bool = torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
    # There is no public way to ask this; a custom autograd function asks the same way.
    watched = watched or torch._C._are_functorch_transforms_active()
    return not watched and all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
