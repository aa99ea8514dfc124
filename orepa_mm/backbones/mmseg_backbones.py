"""OREPA backbones for mmseg."""

from mmseg.models.backbones import ResNet, ResNeXt
from mmseg.registry import MODELS

from .resnet import OREPAResNetMixin, OREPAResNeXtMixin


@MODELS.register_module()
class OREPAResNet(OREPAResNetMixin, ResNet):
    __doc__ = OREPAResNetMixin.__doc__


@MODELS.register_module()
class OREPAResNeXt(OREPAResNeXtMixin, ResNeXt):
    __doc__ = OREPAResNeXtMixin.__doc__
