"""OREPA backbones for mmdet."""

from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS

from .resnet import OREPAResNetMixin


@MODELS.register_module()
class OREPAResNet(OREPAResNetMixin, ResNet):
    __doc__ = OREPAResNetMixin.__doc__
