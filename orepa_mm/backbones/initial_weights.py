"""How the backbones' branches start when they are trained from scratch."""

from copy import deepcopy
from typing import Any

from mmengine.model import BaseModule, initialize
from torch import nn

from ..errors import LayerError
from ..layers import OREPAConv2d


def check_given(conv_cfg: dict[str, Any] | None, **options: Any) -> None:
    """Raise :class:`.LayerError` for options of the method's convolution layer beside another layer."""
    for name, value in options.items():
        if value is not None and conv_cfg is not None:
            raise LayerError(f'{name} and conv_cfg: give the {name} in the conv_cfg')


class BalancedStart:
    """Put before a backbone's class: with ``init='balanced'`` its OREPA layers start as the stock backbone's convolutions do.

    Attributes:
        init: As for :class:`.OREPAConv2d`.
    """

    init: str = 'published'
    is_init: bool  # the stock class's

    def init_weights(self) -> None:
        """As the stock backbone; then each OREPA layer draws the plain kernel that ``init_cfg`` gives a stock convolution there.

        A checkpoint of ``init_cfg`` stays as it was loaded.
        """
        first = not self.is_init
        super().init_weights()  # type: ignore[misc]  # the stock class's
        if first and self.init == 'balanced':
            start_as_plain(self)


def start_as_plain(backbone: BaseModule) -> None:
    """Let every OREPA layer inside start from a plain kernel drawn as the backbone's ``init_cfg`` says; not where that is a checkpoint.

    Raises:
        LayerError: As :meth:`.OREPAConv2d.start_from`.
    """
    given: Any = backbone.init_cfg or []
    configs: list[dict[str, Any]] = [given] if isinstance(given, dict) else given
    if any('checkpoint' in config for config in configs):
        return
    layers = [module for module in backbone.modules() if isinstance(module, OREPAConv2d)]
    plain = [layer.plain_layer() for layer in layers]
    # An override names children of the backbone, which the list has not.
    initialize(nn.ModuleList(plain), [{key: value for key, value in deepcopy(config).items() if key != 'override'} for config in configs])
    for layer, conv in zip(layers, plain, strict=True):
        layer.start_from(conv)
