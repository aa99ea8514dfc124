"""How the backbones' branches start when they are trained from scratch."""

from copy import deepcopy
from typing import Any

from mmengine.model import initialize
from torch import nn

from ..errors import LayerError
from ..layers import OREPAConv2d


def given_options(method: str, conv_cfg: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    """Those options of the OREPA convolutions that are not None.

    Raises:
        LayerError: For one beside a ``conv_cfg``, or of another method.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if conv_cfg is not None:
            raise LayerError(f'{name} and conv_cfg: give the {name} in the conv_cfg')
        if method != 'OREPA':
            raise LayerError(f"{name}={value!r} is for method='OREPA', not {method!r}")
    return given


class BalancedStart(nn.Module):
    """Put before a backbone's class: with ``init='balanced'`` its OREPA layers start as the stock backbone's convolutions do.

    Attributes:
        init: As for :class:`.OREPAConv2d`.
    """

    init: str = 'published'
    is_init: bool  # the stock class's
    init_cfg: Any

    def init_weights(self) -> None:
        """As the stock backbone; then each OREPA layer draws the plain kernel that ``init_cfg`` gives a stock convolution there.

        A checkpoint of ``init_cfg`` stays as it was loaded.

        Raises:
            LayerError: As :meth:`.OREPAConv2d.start_from`.
        """
        first = not self.is_init
        super().init_weights()  # type: ignore[misc]  # the stock class's
        configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        if not first or self.init != 'balanced' or any('checkpoint' in config for config in configs):
            return
        layers = [module for module in self.modules() if isinstance(module, OREPAConv2d)]
        plain = [layer.plain_layer() for layer in layers]
        # An override names children of the backbone, which the list has not.
        configs = [{key: value for key, value in deepcopy(config).items() if key != 'override'} for config in configs]
        initialize(nn.ModuleList(plain), configs)
        for layer, conv in zip(layers, plain, strict=True):
            layer.start_from(conv)
