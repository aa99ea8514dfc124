"""What the OREPA ResNets of the three toolboxes have in common."""


class OREPAResNetMixin:
    """Builds a toolbox's own ResNet with OREPA convolutions.

    Put before the stock class. In bottleneck nets (depth 50 and up) every convolution is an OREPA one; in basic-block nets the 1x1
    projection shortcut stays plain, and the 7x7 stem is a deep linear stem in both (paper, section 4.1).

    Args:
        depth: 18, 34, 50, 101 or 152.
        conv_cfg: Another convolution layer than OREPA's.
        kwargs: All arguments of the toolbox's ResNet.
    """

    def __init__(self, depth: int, *, conv_cfg: dict | None = None, **kwargs) -> None:
        if conv_cfg is None:
            conv_cfg = dict(type='OREPAConv2d', plain_sizes=(1,) if depth in (18, 34) else ())
        super().__init__(depth, conv_cfg=conv_cfg, **kwargs)

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
