"""What the backbones do with weights that are loaded into them, whoever loads them."""

from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from .checking import check_state_dict
from .plain_kernels import plain_kernels
from .reading import under


class ChecksWeights(nn.Module):
    """Put before a backbone's class: loading refuses weights of another network, and logs how many plain kernels are expanded.

    Loaders that are not strict, as those of the inferencers, would drop them and run a network with random weights.
    """

    def adapt_state_dict(self, state: dict[str, Tensor], prefix: str) -> None:
        """Turn other keys that may be loaded into this module's own, in place."""

    def train(self, mode: bool = True) -> nn.Module:  # type: ignore[override]
        super().train(mode)
        return self  # as torch's, where the stock backbones return nothing

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.adapt_state_dict(state_dict, prefix)
        weights = under(prefix.removesuffix('.'), state_dict)
        if weights and not any(parameter.is_meta for parameter in self.parameters()):  # there, loading only tells which keys fit
            check_state_dict(self, weights, 'the checkpoint', partial=True)
            count = len(plain_kernels(self, state_dict, prefix))
            if count:
                print_log(f'{type(self).__name__}: {count} plain convolutions of the checkpoint are expanded into branches.', 'current')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
