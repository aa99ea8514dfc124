"""RepVGG with OREPA convolutions; mmdet and mmseg have no RepVGG of their own and use mmpretrain's."""

from collections import OrderedDict

from mmpretrain.models.backbones import RepVGG
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from torch import nn

from ..checkpoints.checks_weights import ChecksWeights
from ..reparam import reparameterize

CONV_CFGS = {
    # The 1x1 branch of the block takes the place of the layer's own.
    'OREPA': dict(type='OREPAConv2d', plain_sizes=(1,), branches=('origin', 'avg', 'freq', 'sequence', 'separable')),
    'RepVGG': dict(type='Conv2d'),
}


class OREPARepVGG(ChecksWeights, RepVGG):
    """mmpretrain's RepVGG with OREPA 3x3 convolutions in its blocks (paper, section 4.1, OREPA-RepVGG).

    Args:
        arch: ``'A0'``, ``'A1'``, ``'A2'``, ``'B0'``, ``'B1'``, ``'B1g2'``, ``'B1g4'``, ``'B2'``, ``'B2g2'``, ``'B2g4'``, ``'B3'``,
            ``'B3g2'``, ``'B3g4'``, ``'D2se'`` (with squeeze and excitation), or a dict as for the stock class.
        method: ``'OREPA'`` or ``'RepVGG'`` (the stock network).
        conv_cfg: Another convolution layer for the branches than the method's.
        kwargs: All arguments of mmpretrain's RepVGG; ``deploy=True`` builds the deployed form, whose parameter names are those of the
            re-parameterized network.

    Raises:
        ValueError: For an unknown method or architecture.

    Example:
        >>> backbone = dict(type='OREPARepVGG', arch='A0', out_indices=(0, 1, 2, 3))
    """

    def __init__(self, arch: str | dict, *, method: str = 'OREPA', conv_cfg: dict | None = None, deploy: bool = False, **kwargs) -> None:
        if method not in CONV_CFGS:
            raise ValueError(f'method={method!r} is unknown; choose from {", ".join(CONV_CFGS)}')
        if isinstance(arch, str) and arch not in self.arch_settings:
            raise ValueError(f'arch={arch!r} is unknown; choose from {", ".join(self.arch_settings)}, or give a dict')
        if conv_cfg is None:
            conv_cfg = CONV_CFGS[method]
        super().__init__(arch, conv_cfg=None if deploy else conv_cfg, deploy=deploy, **kwargs)
        for stage in list(self.modules()):
            for name, block in stage.named_children():
                if not isinstance(block, RepVGGBlock):
                    continue
                block.conv_cfg = None  # what the stock block builds when it deploys itself must be plain
                if deploy and block.se_layer is not None:
                    # A stock block in deployed form leaves squeeze and excitation out.
                    setattr(stage, name, nn.Sequential(OrderedDict(block.named_children())))

    def switch_to_deploy(self) -> None:
        """Re-parameterize in place, as :func:`orepa_mm.reparameterize`.

        Raises:
            FuseError: In training mode.
        """
        self.deploy = True
        reparameterize(self)
