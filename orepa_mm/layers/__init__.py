"""Convolution layers with training-time branches."""

from .base import ReparameterizableConv2d
from .orepa_conv import OREPAConv2d

__all__ = ['OREPAConv2d', 'ReparameterizableConv2d']
