"""Convolution layers with training-time branches."""

from .base import LayerError, PlainKernelError, ReparameterizableConv2d
from .dbb_conv import DBBConv2d
from .orepa_conv import OREPAConv2d

__all__ = ['DBBConv2d', 'LayerError', 'OREPAConv2d', 'PlainKernelError', 'ReparameterizableConv2d']
