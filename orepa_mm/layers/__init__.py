"""Convolution layers with training-time branches."""

from .acnet_conv import ACNetConv2d as ACNetConv2d
from .base import ReparameterizableConv2d as ReparameterizableConv2d
from .dbb_conv import DBBConv2d as DBBConv2d
from .expandnet_conv import ExpandNetConv2d as ExpandNetConv2d
from .methods import METHODS as METHODS
from .normed_conv import NormedConv2d as NormedConv2d
from .orepa_conv import OREPAConv2d as OREPAConv2d
from .ref_conv import RefConv2d as RefConv2d
from .squeezed_conv import SqueezedConv2d as SqueezedConv2d
