"""What torch has under another name, or not at all, in some of its versions; the oldest is 2.1."""

from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

if torch.__version__ >= '2.4':
    from torch import is_autocast_enabled
    from torch.amp import is_autocast_available
    from torch.compiler import is_compiling
else:
    from torch._dynamo import is_compiling

    def is_autocast_available(device_type: str) -> bool:
        return device_type in ('cpu', 'cuda') or hasattr(getattr(torch, device_type, None), 'is_autocast_enabled')

    def is_autocast_enabled(device_type: str) -> bool:  # type: ignore[no-redef]
        if device_type == 'cpu':
            return torch.is_autocast_cpu_enabled()
        return (torch if device_type == 'cuda' else getattr(torch, device_type)).is_autocast_enabled()


__all__ = ['SAFE_GLOBALS', 'is_autocast_available', 'is_autocast_enabled', 'is_compiling', 'keep_step_hooks', 'set_submodule']

SAFE_GLOBALS = torch.__version__ >= '2.6'  # torch.load(weights_only=True) takes classes of ours, and under other names


@cache
def keep_step_hooks() -> None:
    """Let hooks around steps of torch's optimizers be called, which the first ``torch.compile`` of a process ends in torch 2.1 and 2.2."""
    if torch.__version__ >= '2.3':
        return
    with suppress(RuntimeError):  # of a Python that torch cannot compile for
        torch.compile(lambda: None)  # the first, so that what it takes away can be put back
    kinds: list[Any] = [kind for kind in vars(torch.optim).values() if isinstance(kind, type) and issubclass(kind, Optimizer)]
    calls_hooks: Any = Optimizer.profile_hook_step(len)
    for kind in kinds:
        if 'step' in vars(kind) and kind.step.__code__ is not calls_hooks.__code__:
            kind.step = Optimizer.profile_hook_step(kind.step)
            kind.step.hooked = True


def set_submodule(model: nn.Module, path: str, module: nn.Module) -> None:
    """As ``model.set_submodule`` of torch 2.5."""
    parent, _, name = path.rpartition('.')
    setattr(model.get_submodule(parent), name, module)
