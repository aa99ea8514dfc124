"""RepVGG with OREPA convolutions; mmdet and mmseg have no RepVGG of their own and use mmpretrain's."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar

from mmpretrain.models.backbones import RepVGG
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from torch import nn

from ..checkpoints.checks_weights import ChecksWeights
from ..errors import LayerError
from ..layers.kernels import branch_names
from ..reparam import reparameterize
from .options import given_options

METHODS = ('OREPA', 'RepVGG')


class OREPARepVGG(ChecksWeights, RepVGG):
    """mmpretrain's RepVGG with OREPA 3x3 convolutions in its blocks (paper, section 4.1, OREPA-RepVGG).

    Args:
        arch: ``'A0'``, ``'A1'``, ``'A2'``, ``'B0'``, ``'B1'``, ``'B1g2'``, ``'B1g4'``, ``'B2'``, ``'B2g2'``, ``'B2g4'``, ``'B3'``,
            ``'B3g2'``, ``'B3g4'``, ``'D2se'`` (with squeeze and excitation), or a dict as for the stock class.
        method: ``'OREPA'`` or ``'RepVGG'`` (the stock network).
        branches: Which branches the OREPA convolutions have, as for :class:`.OREPAConv2d`; ``'point'`` is left to the block.
        init, start: How the OREPA convolutions start, as in ``OREPAResNet``.
        conv_cfg: Another convolution layer for the branches than the method's.
        kwargs: All arguments of mmpretrain's RepVGG; ``deploy=True`` builds the deployed form, whose parameter names are those of the
            re-parameterized network.

    Raises:
        LayerError: For an unknown method or architecture, and for ``branches``, ``init`` or ``start`` beside another method or a
            ``conv_cfg``.

    Example:
        >>> backbone = dict(type='OREPARepVGG', arch='A0', out_indices=(0, 1, 2, 3))
    """

    arch_settings: ClassVar[dict[str, Any]]

    def __init__(
        self,
        arch: str | dict[str, Any],
        *,
        method: str = 'OREPA',
        branches: str | Iterable[str] | None = None,
        init: str | None = None,
        start: str | None = None,
        conv_cfg: dict[str, Any] | None = None,
        deploy: bool = False,
        **kwargs: Any,
    ) -> None:
        if method not in METHODS:
            raise LayerError(f'method={method!r} is unknown; choose from {", ".join(METHODS)}')
        given = given_options(method, conv_cfg, branches=branches, init=init, start=start)
        if isinstance(arch, str) and arch not in self.arch_settings:
            raise LayerError(f'arch={arch!r} is unknown; choose from {", ".join(self.arch_settings)}, or give a dict')
        if conv_cfg is None and method == 'OREPA':
            # The 1x1 branch of the block takes the place of the layer's own.
            names = tuple(name for name in branch_names(given.get('branches', 'full')) if name != 'point')
            own = {} if kwargs.get('init_cfg') else dict(init='published')
            conv_cfg = dict(type='OREPAConv2d', plain_sizes=(1,), **(own | given | dict(branches=names)))
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
