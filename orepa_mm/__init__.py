"""Online convolutional re-parameterization (OREPA) for the OpenMMLab toolboxes."""

from .layers import DBBConv2d, OREPAConv2d
from .optim import attach_branches
from .registry import register_all
from .reparam import expand, prune_branches, reparameterize, reparameterized
from .version import __version__

register_all()

__all__ = [
    'DBBConv2d',
    'OREPAConv2d',
    '__version__',
    'attach_branches',
    'expand',
    'prune_branches',
    'reparameterize',
    'reparameterized',
]
