"""What the backbones do with weights that are loaded into them, whoever loads them."""

from typing import Any

from torch import nn

from .checking import check_state_dict
from .plain_kernels import plain_kernels


class ChecksWeights(nn.Module):
    """Put before a backbone's class: loading refuses weights of another network, and logs how many plain kernels are expanded.

    Loaders that are not strict, as those of the inferencers, would drop them and run a network with random weights.
    """

    def train(self, mode: bool = True) -> nn.Module:  # type: ignore[override]
        super().train(mode)
        return self  # as torch's, where the stock backbones return nothing

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if weights and not any(parameter.is_meta for parameter in self.parameters()):  # there, loading only tells which keys fit
            check_state_dict(self, weights, 'the checkpoint', partial=True)
            count = len(plain_kernels(self, state_dict, prefix))
            if count:
                from mmengine.logging import print_log

                message = f'{type(self).__name__}: {count} plain convolutions of the checkpoint are expanded into branches.'
                print_log(message, logger='current')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
