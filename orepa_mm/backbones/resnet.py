"""What the OREPA ResNets of the three toolboxes have in common."""

from collections.abc import Iterable
from typing import Any

from mmcv.cnn import build_conv_layer
from torch import Tensor, nn

from ..checkpoints.checks_weights import ChecksWeights
from ..checkpoints.stem import squeeze_stem
from ..errors import LayerError
from ..layers import METHODS, ReparameterizableConv2d
from ..layers.base import shape_of
from ..registry import type_name
from .options import given_options


def conv_cfg_of(method: str, depth: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The convolution layer of a method, as the published networks use it, for a stock ResNet with ``kwargs``.

    OREPA replaces every convolution of a bottleneck net, and in a basic-block net all but the 1x1 projection shortcut. The others replace
    the convolutions between 1x1 and the 7x7 stem.

    Raises:
        LayerError: For an unknown method.
    """
    if method == 'none':
        return dict(type='Conv2d')
    if method not in METHODS:
        raise LayerError(f'method={method!r} is unknown; choose from {", ".join(METHODS)}, none')
    layer = METHODS[method]
    projection = (1,) if depth in (18, 34) else ()
    cfg: dict[str, Any] = dict(type=layer.__name__, plain_sizes=layer.plain_sizes or projection)
    if layer.brings_norm:
        cfg['norm_cfg'] = dict(kwargs.get('norm_cfg') or {})
    elif not kwargs.get('init_cfg'):  # the stock class's own is not meant for branches; of one that is given the layers say what they do
        cfg['init'] = 'published'
    return cfg


def _brings_norm(module: Any) -> bool:
    return isinstance(module, ReparameterizableConv2d) and module.brings_norm


def _drop_norms(resnet: nn.Module) -> None:
    """Some layers bring their norms along, so a stock ResNet goes without those it applies behind one."""
    for module in list(resnet.modules()):
        for i in (1, 2, 3):
            name = getattr(module, f'norm{i}_name', None)
            if name is not None and _brings_norm(getattr(module, f'conv{i}', None)):
                setattr(module, name, nn.Identity())
    # A deep stem: convolution, norm and activation in turn, or ConvModules.
    before = None
    for name, module in list(getattr(resnet, 'stem', nn.Sequential()).named_children()):
        if _brings_norm(before):
            setattr(resnet.stem, name, nn.Identity())
        if _brings_norm(getattr(module, 'conv', None)):
            setattr(module, module.norm_name, nn.Identity())
        before = module


class OREPAResNetMixin(ChecksWeights):
    """Builds a toolbox's own ResNet with OREPA convolutions, or with a baseline's.

    Put before the stock class, which may be a ``ResNetV1c`` or ``V1d``. The 7x7 stem of OREPA is a deep linear one (paper, section 4.1).

    Args:
        depth: 18, 34, 50, 101 or 152.
        method: A name in :data:`.METHODS`, such as ``'OREPA'`` or ``'DBB'`` (Diverse Branch Block), or ``'none'`` (stock convolutions).
        branches: Which branches the OREPA convolutions have, as for :class:`.OREPAConv2d`: ``'full'`` (default), ``'light'``, or names.
        init: How the OREPA convolutions start: ``'published'`` (default), every branch drawn as the published code does, or ``'balanced'``,
            branches that add up to what the stock network draws (``init_cfg`` says what). A stem with fewer than 9 output channels for
            an input channel takes ``plain_stem=True`` for it.
        start: How their branches start from stock weights that are loaded, as for :func:`orepa_mm.expand`: ``'balanced'`` (default),
            ``'zeros'`` or ``'shared'``.
        conv_cfg: Another convolution layer than the method's.
        plain_stem: Build the 7x7 stem as one plain convolution. Of a checkpoint with a deep linear stem it takes the kernel that the
            stem's branches add up to.
        kwargs: All arguments of the toolbox's ResNet.

    Raises:
        LayerError: For an unknown method, for ``branches``, ``init`` or ``start`` beside another method or a ``conv_cfg``, and for
            ``plain_stem`` with a deep stem, which has no 7x7 convolution.
    """

    def __init__(
        self,
        depth: int,
        *,
        method: str = 'OREPA',
        branches: str | Iterable[str] | None = None,
        init: str | None = None,
        start: str | None = None,
        conv_cfg: dict[str, Any] | None = None,
        plain_stem: bool = False,
        **kwargs: Any,
    ) -> None:
        names = branches if branches is None or isinstance(branches, str) else tuple(branches)
        given = given_options(method, conv_cfg, branches=names, init=init, start=start)
        if conv_cfg is None:
            conv_cfg = conv_cfg_of(method, depth, kwargs) | given
        if plain_stem and type_name(conv_cfg['type']) in [layer.__name__ for layer in METHODS.values()]:
            conv_cfg = dict(conv_cfg, plain_sizes=(*conv_cfg.get('plain_sizes', ()), 7))
        self.plain_stem = plain_stem
        super().__init__(depth=depth, conv_cfg=conv_cfg, **kwargs)
        if plain_stem and self.deep_stem:
            raise LayerError('plain_stem=True is for the 7x7 stem, and a deep stem (deep_stem=True, V1c, V1d) has none: leave it out')
        _drop_norms(self)

    def adapt_state_dict(self, state: dict[str, Tensor], prefix: str) -> None:
        if self.plain_stem:
            squeeze_stem(state, prefix)

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        if kwargs.get('dcn') is None:
            return super().make_res_layer(**kwargs)  # type: ignore[misc]  # the stock class's
        # The stock blocks demand that conv_cfg is None beside deformable convolutions: their other convolutions are built afterwards.
        conv_cfg = kwargs.pop('conv_cfg')
        layer = super().make_res_layer(conv_cfg=None, **dict(kwargs, dcn=dict(kwargs['dcn'])))  # type: ignore[misc]
        for block in layer:
            for parent, name in ((block, 'conv1'), (block, 'conv2'), (block, 'conv3'), (block.downsample, '0'), (block.downsample, '1')):
                child = getattr(parent, name, None)
                if type(child) is nn.Conv2d:
                    setattr(parent, name, _rebuilt(child, conv_cfg))
        return layer


def _rebuilt(conv: nn.Conv2d, conv_cfg: dict[str, Any]) -> nn.Module:
    """The layer that ``conv_cfg`` makes of a stock convolution's arguments."""
    return build_conv_layer(conv_cfg, **shape_of(conv))


class OREPAResNeXtMixin(OREPAResNetMixin):
    """Builds a toolbox's own ResNeXt with OREPA convolutions, or with a baseline's; put before the stock class.

    Args:
        depth: 50, 101 or 152.
        groups: Groups of the 3x3 convolutions; with the stock width of 4 channels a group the net is a 32x4d.
        kwargs: As in ``OREPAResNet``, and all arguments of the toolbox's ResNeXt.
    """

    def __init__(self, depth: int, *, groups: int = 32, **kwargs: Any) -> None:
        super().__init__(depth, groups=groups, **kwargs)
