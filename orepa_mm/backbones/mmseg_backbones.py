"""OREPA backbones for mmseg."""

from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS

from .resnet import OREPAResNetMixin


@MODELS.register_module()
class OREPAResNet(OREPAResNetMixin, ResNet):
    __doc__ = OREPAResNetMixin.__doc__
