"""Autocast, half precision, tracing: what else is going on while a kernel is squeezed."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..torch_versions import is_autocast_available, is_autocast_enabled, is_compiling


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # the compiler of older torch stops at the call
def _has_autocast(kind: str) -> bool:
    return is_autocast_available(kind)


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Switches autocast off on the device of ``tensor``: half precision would round every branch, and squeezing is cheap."""
    if not isinstance(tensor, Tensor):  # a stand-in while torch.fx traces
        return nullcontext()
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


# Where nn.Module keeps the hooks of its forward and backward passes, for which it has no public name.
HOOKS = tuple(name for name in vars(nn.Module()) if 'hook' in name and 'state_dict' not in name)


def in_float32(module: nn.Module) -> nn.Module:
    """``module``, or where it is in half precision a copy in float32 without hooks, so that sums are rounded once, by the caller."""
    if all(value.dtype not in (torch.float16, torch.bfloat16) for value in (*module.parameters(), *module.buffers())):
        return module
    hooks = (vars(part)[name] for part in module.modules() for name in HOOKS)
    # A hook may hold anything, the whole model too.
    return copy.deepcopy(module, {id(held): type(held)() for held in hooks if isinstance(held, dict)}).float()


def under_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of ``tensor``."""
    kind = tensor.device.type
    return _has_autocast(kind) and is_autocast_enabled(kind)


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether torch just computes with these tensors.

    False where something looks on or takes over: tracers, exporters and compilers (which may drop what a custom autograd function writes
    in place, or stop at it), ``torch.func`` and vmap, and tensors of other classes (DTensor, FakeTensor, torch.fx's stand-ins).
    """
    watched: bool = torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or is_compiling()  # type: ignore[attr-defined]
    # There is no public way to ask this; a custom autograd function asks the same way.
    watched = watched or torch._C._are_functorch_transforms_active()
    return not watched and all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
