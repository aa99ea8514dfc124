"""OREPA backbones for mmseg."""

from importlib.util import find_spec

from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d, ResNeXt
from mmseg.registry import MODELS

from .resnet import OREPAResNetMixin, OREPAResNeXtMixin


@MODELS.register_module()
class OREPAResNet(OREPAResNetMixin, ResNet):
    __doc__ = OREPAResNetMixin.__doc__


@MODELS.register_module()
class OREPAResNetV1c(OREPAResNetMixin, ResNetV1c):
    __doc__ = OREPAResNetMixin.__doc__


@MODELS.register_module()
class OREPAResNetV1d(OREPAResNetMixin, ResNetV1d):
    __doc__ = OREPAResNetMixin.__doc__


@MODELS.register_module()
class OREPAResNeXt(OREPAResNeXtMixin, ResNeXt):
    __doc__ = OREPAResNeXtMixin.__doc__


if find_spec('mmpretrain') is not None:
    from .repvgg import OREPARepVGG

    MODELS.register_module(module=OREPARepVGG)
