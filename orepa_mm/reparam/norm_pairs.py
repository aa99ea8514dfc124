"""Which norm follows which convolution, read off the module structure."""

import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# mmcv's and torchvision's norms with fixed statistics that are no subclasses of torch's.
_BATCH_NORM_NAMES = ('SyncBatchNorm', 'FrozenBatchNorm2d')


def is_batch_norm(module: nn.Module | None) -> bool:
    """Whether ``module`` normalises each channel with running statistics in eval mode."""
    return isinstance(module, _BatchNorm) or type(module).__name__ in _BATCH_NORM_NAMES


def following_norm(parent: nn.Module, name: str) -> str | None:
    """Name of the batch norm that ``parent`` applies right after its child ``name``; None where that is not certain.

    Certain are: the next child of an ``nn.Sequential``; the norm of an mmcv ``ConvModule`` whose order puts it after the
    convolution; and, as in residual blocks, ``bnN`` or ``normN`` registered right behind ``convN``.
    """
    children = parent._modules
    names = list(children)
    position = names.index(name)
    behind = names[position + 1] if position + 1 < len(names) else None

    if isinstance(parent, nn.Sequential):
        if type(parent).forward is not nn.Sequential.forward:
            return None
        candidate = behind
    elif hasattr(parent, 'order') and hasattr(parent, 'norm_name') and name == 'conv':
        order = list(parent.order)
        follows = parent.norm_name and order.index('norm') == order.index('conv') + 1
        candidate = parent.norm_name if follows else None
    else:
        number = re.fullmatch(r'conv(\d*)', name)
        if number is None:
            return None
        suffix = number.group(1)
        conventional = {f'bn{suffix}', f'norm{suffix}', getattr(parent, f'norm{suffix}_name', None)}
        candidate = behind if behind in conventional else None
    return candidate if candidate is not None and is_batch_norm(children.get(candidate)) else None
