"""Convolution layers with training-time branches."""

from .base import PlainKernelError, ReparameterizableConv2d
from .orepa_conv import OREPAConv2d

__all__ = ['OREPAConv2d', 'PlainKernelError', 'ReparameterizableConv2d']
