"""Arithmetic of re-parameterization: weights in, weights out, plain torch."""

from .fuse import fuse_norm
from .fused_squeeze import fused_squeeze_1x1, fused_squeeze_kxk
from .merge import average, identity_kernel, merge_1x1_kxk
from .precision import without_autocast
from .repvgg_l2 import repvgg_l2
from .squeeze import compose, frequency_prior, squeeze_1x1, squeeze_kxk

__all__ = [
    'average',
    'compose',
    'frequency_prior',
    'fuse_norm',
    'fused_squeeze_1x1',
    'fused_squeeze_kxk',
    'identity_kernel',
    'merge_1x1_kxk',
    'repvgg_l2',
    'squeeze_1x1',
    'squeeze_kxk',
    'without_autocast',
]
