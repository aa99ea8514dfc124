"""Arithmetic of re-parameterization: weights in, weights out, plain torch."""

from .fuse import fuse_norm
from .squeeze import compose, frequency_prior, squeeze_1x1, squeeze_kxk

__all__ = ['compose', 'frequency_prior', 'fuse_norm', 'squeeze_1x1', 'squeeze_kxk']
