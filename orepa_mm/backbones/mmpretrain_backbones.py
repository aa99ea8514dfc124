"""OREPA backbones for mmpretrain."""

from mmpretrain.models.backbones import ResNet, ResNetV1c, ResNetV1d, ResNeXt, SEResNet, SEResNeXt
from mmpretrain.registry import MODELS

from .repvgg import OREPARepVGG
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


@MODELS.register_module()
class OREPASEResNet(OREPAResNetMixin, SEResNet):
    __doc__ = OREPAResNetMixin.__doc__


@MODELS.register_module()
class OREPASEResNeXt(OREPAResNeXtMixin, SEResNeXt):
    __doc__ = OREPAResNeXtMixin.__doc__


MODELS.register_module(module=OREPARepVGG)
