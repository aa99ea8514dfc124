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
from .initial_weights import BalancedStart, check_given

METHODS = ('OREPA', 'RepVGG')


def conv_cfg_of(method: str, branches: str | Iterable[str] | None = None, init: str | None = None) -> dict[str, Any]:
    """The convolution layer of a method.

    Raises:
        LayerError: For an unknown method, and for ``branches`` or ``init`` of another than OREPA.
    """
    if method not in METHODS:
        raise LayerError(f'method={method!r} is unknown; choose from {", ".join(METHODS)}')
    if method == 'OREPA':
        # The 1x1 branch of the block takes the place of the layer's own.
        names = tuple(name for name in branch_names('full' if branches is None else branches) if name != 'point')
        return dict(type='OREPAConv2d', plain_sizes=(1,), branches=names, **({} if init is None else dict(init=init)))
    for name, value in dict(branches=branches, init=init).items():
        if value is not None:
            raise LayerError(f"{name}={value!r} is for method='OREPA', not {method!r}")
    return dict(type='Conv2d')


class OREPARepVGG(BalancedStart, ChecksWeights, RepVGG):
    """mmpretrain's RepVGG with OREPA 3x3 convolutions in its blocks (paper, section 4.1, OREPA-RepVGG).

    Args:
        arch: ``'A0'``, ``'A1'``, ``'A2'``, ``'B0'``, ``'B1'``, ``'B1g2'``, ``'B1g4'``, ``'B2'``, ``'B2g2'``, ``'B2g4'``, ``'B3'``,
            ``'B3g2'``, ``'B3g4'``, ``'D2se'`` (with squeeze and excitation), or a dict as for the stock class.
        method: ``'OREPA'`` or ``'RepVGG'`` (the stock network).
        branches: Which branches the OREPA convolutions have, as for :class:`.OREPAConv2d`; ``'point'`` is left to the block.
        init: How the OREPA convolutions start, as in ``OREPAResNet``: ``'published'`` (default) or ``'balanced'``.
        conv_cfg: Another convolution layer for the branches than the method's.
        kwargs: All arguments of mmpretrain's RepVGG; ``deploy=True`` builds the deployed form, whose parameter names are those of the
            re-parameterized network.

    Raises:
        LayerError: For an unknown method or architecture, and for ``branches`` or ``init`` beside another method or a ``conv_cfg``.

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
        conv_cfg: dict[str, Any] | None = None,
        deploy: bool = False,
        **kwargs: Any,
    ) -> None:
        check_given(conv_cfg, branches=branches, init=init)
        method_cfg = conv_cfg_of(method, branches, init)
        if isinstance(arch, str) and arch not in self.arch_settings:
            raise LayerError(f'arch={arch!r} is unknown; choose from {", ".join(self.arch_settings)}, or give a dict')
        if conv_cfg is None:
            conv_cfg = method_cfg
        start = conv_cfg.get('init', 'published')
        super().__init__(arch, conv_cfg=None if deploy else conv_cfg, deploy=deploy, **kwargs)
        self.init = start
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
