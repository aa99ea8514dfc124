"""Convolution layers with training-time branches."""

from .base import ReparameterizableConv2d
from .compiled import CompileReport, compile_squeezing, has_compilable_squeezing
from .dbb_conv import DBBConv2d
from .orepa_conv import OREPAConv2d

__all__ = [
    'CompileReport',
    'DBBConv2d',
    'OREPAConv2d',
    'ReparameterizableConv2d',
    'compile_squeezing',
    'has_compilable_squeezing',
]
