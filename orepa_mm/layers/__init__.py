"""Convolution layers with training-time branches."""

from .base import ReparameterizableConv2d
from .conv_cfg import conv_builder
from .dbb_conv import DBBConv2d
from .orepa_conv import OREPAConv2d

__all__ = [
    'DBBConv2d',
    'OREPAConv2d',
    'ReparameterizableConv2d',
    'conv_builder',
]
