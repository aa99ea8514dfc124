"""The precision of squeezing: that of the parameters."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Switches autocast off on the device of ``tensor``: half precision would round every branch, and squeezing is cheap."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
