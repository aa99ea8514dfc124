"""What the OREPA ResNets of the three toolboxes have in common."""

from torch import nn

from ..layers import DBBConv2d
from ..reparam.norm_pairs import following_norm

METHODS = ('OREPA', 'DBB', 'none')


def conv_cfg_of(method: str, depth: int, norm_cfg: dict | None) -> dict:
    """The convolution layer of a method, as the published networks use it.

    OREPA replaces every convolution of a bottleneck net, and in a basic-block net all but the 1x1 projection shortcut. DBB replaces
    the convolutions between 1x1 and the 7x7 stem.

    Raises:
        ValueError: For an unknown method.
    """
    if method == 'OREPA':
        return dict(type='OREPAConv2d', plain_sizes=(1,) if depth in (18, 34) else ())
    if method == 'DBB':
        kind = (norm_cfg or {}).get('type', 'BN')
        return dict(type='DBBConv2d', plain_sizes=(1, 7), norm_cfg=dict(type=kind))
    if method == 'none':
        return dict(type='Conv2d')
    raise ValueError(f'method={method!r} is unknown; choose from {", ".join(METHODS)}')


def drop_norms_after(model: nn.Module, layer: type[nn.Module]) -> None:
    """Replace the batch norms that follow layers of a kind which brings its own."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            norm = following_norm(parent, name) if isinstance(child, layer) else None
            if norm is not None:
                setattr(parent, norm, nn.Identity())


class OREPAResNetMixin:
    """Builds a toolbox's own ResNet with OREPA convolutions, or with a baseline's.

    Put before the stock class. The 7x7 stem of OREPA is a deep linear one (paper, section 4.1).

    Args:
        depth: 18, 34, 50, 101 or 152.
        method: ``'OREPA'``, ``'DBB'`` (Diverse Branch Block) or ``'none'`` (stock convolutions).
        conv_cfg: Another convolution layer than the method's.
        kwargs: All arguments of the toolbox's ResNet.

    Raises:
        ValueError: For an unknown method.
    """

    def __init__(self, depth: int, *, method: str = 'OREPA', conv_cfg: dict | None = None, **kwargs) -> None:
        if conv_cfg is None:
            conv_cfg = conv_cfg_of(method, depth, kwargs.get('norm_cfg'))
        super().__init__(depth, conv_cfg=conv_cfg, **kwargs)
        drop_norms_after(self, DBBConv2d)

    def make_res_layer(self, **kwargs):
        if kwargs.get('dcn') is not None:
            kwargs['block'] = _beside_deformable(kwargs['block'])
            kwargs['dcn'] = dict(kwargs['dcn'])
        return super().make_res_layer(**kwargs)


def _beside_deformable(block: type) -> type:
    """A ``block`` whose conv2 is deformable and whose other convolutions follow ``conv_cfg``.

    The stock block demands ``self.conv_cfg is None`` beside ``dcn`` and builds the other convolutions from the argument.
    """
    return type(block.__name__, (block,), dict(conv_cfg=property(lambda self: None, lambda self, value: None)))
