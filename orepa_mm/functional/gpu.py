"""Whether a device can squeeze by Triton's programs, in a few launches instead of dozens."""

import logging
from functools import cache
from types import ModuleType

import torch

from .squeeze import Branches

logger = logging.getLogger(__name__)


@cache
def programs_for(device: torch.device) -> ModuleType | None:
    """The module with ``squeeze_into`` and ``gradient`` for tensors on this device; None on a CPU, where Triton fails, before torch 2.6.

    Triton comes with torch on Linux. It compiles on first use and needs a C compiler for that; without one the log says so, once.
    """
    if device.type != 'cuda' or torch.__version__ < '2.6':  # the programs were not tried with older Triton
        return None
    try:
        from . import triton_squeeze

        weights = Branches(scale=torch.ones(1, 1, device=device), origin=torch.ones(1, 9, 1, device=device))
        triton_squeeze.squeeze_into(torch.empty(1, 1, 3, 3, device=device), weights, 1)
    except Exception as error:  # whatever a compiler, or a driver it is too new for, may say
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning('Triton does not run here, so squeezing starts many small operations on the GPU and is slower: %s', reason[-1])
        return None
    return triton_squeeze
