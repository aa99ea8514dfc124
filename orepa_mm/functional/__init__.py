"""Arithmetic of re-parameterization: weights in, weights out, plain torch."""

from .closed_form import closed_form_kxk, gradient_kxk
from .factor import shifts_and_kernel
from .fuse import fuse_norm
from .gradient_matrix import gradient_matrix, multiply_taps
from .merge import add_identity, average, merge_1x1_kxk
from .precision import HOOKS, in_float32, is_plain_eager, under_autocast, without_autocast
from .repvgg_l2 import repvgg_l2
from .squeeze import BRANCHES, Branches, branch_kernels, compose, frequency_prior, kernel_of, rows_of, squeeze_kxk

__all__ = [
    'BRANCHES',
    'HOOKS',
    'Branches',
    'add_identity',
    'average',
    'branch_kernels',
    'closed_form_kxk',
    'compose',
    'frequency_prior',
    'fuse_norm',
    'gradient_kxk',
    'gradient_matrix',
    'in_float32',
    'is_plain_eager',
    'kernel_of',
    'merge_1x1_kxk',
    'multiply_taps',
    'repvgg_l2',
    'rows_of',
    'shifts_and_kernel',
    'squeeze_kxk',
    'under_autocast',
    'without_autocast',
]
