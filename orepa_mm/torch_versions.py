"""What torch has under another name, or not at all, in some of its versions; the oldest is 2.1."""

import torch
from torch import nn

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


__all__ = ['SAFE_GLOBALS', 'is_autocast_available', 'is_autocast_enabled', 'is_compiling', 'set_submodule']

SAFE_GLOBALS = torch.__version__ >= '2.6'  # torch.load(weights_only=True) takes classes of ours, and under other names


def set_submodule(model: nn.Module, path: str, module: nn.Module) -> None:
    """As ``model.set_submodule`` of torch 2.5."""
    parent, _, name = path.rpartition('.')
    setattr(model.get_submodule(parent), name, module)
