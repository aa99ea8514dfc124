"""OREPA backbones for mmpretrain."""

from mmpretrain.models.backbones import ResNet
from mmpretrain.registry import MODELS

from .resnet import OREPAResNetMixin


@MODELS.register_module()
class OREPAResNet(OREPAResNetMixin, ResNet):
    __doc__ = OREPAResNetMixin.__doc__
