"""Branches beside the optimizer: the model stays the plain network while its kernels train as squeezed branches."""

from .attach import attach_branches
from .attached import AttachedBranches, attached_to

__all__ = ['AttachedBranches', 'attach_branches', 'attached_to']
