"""A deep linear stem in a state dict: its layer, and the plain kernel it equals."""

import torch
from torch import Tensor

from ..layers import OREPAConv2d
from ..layers.adapting import branches_in


def deep_stem(state: dict[str, Tensor], path: str) -> OREPAConv2d | None:
    """The layer of a deep linear stem with the weights that a model's state dict has for it; None where it has none at ``path``."""
    prefix = f'{path}.'
    keys = [key for key in state if key.startswith(f'{prefix}kernel.stages.') and not key.endswith('.gradient_matrix')]
    branches = {key.removeprefix(prefix): state[key] for key in keys}
    if not branches:
        return None
    stages = [key.removesuffix('.origin') for key in branches if key.endswith('.origin')]
    weights = [branches[f'{stage}.origin'] for stage in stages] or [value for key, value in branches.items() if key.endswith('.weight')]
    in_channels = weights[0].shape[2 if weights[0].dim() == 3 else 1]  # three: in rows
    options = dict(branches=branches_in(branches, f'{stages[0]}.')) if stages else dict(plain_stages=True)
    layer = OREPAConv2d(in_channels, len(weights[0]), 2 * len(weights) + 1, bias=False, **options)
    layer.to(weights[0].dtype).load_state_dict(branches)
    return layer


@torch.no_grad()
def squeeze_stem(state: dict[str, Tensor], prefix: str = '') -> bool:
    """Replace the deep linear stem of a ResNet, whose keys begin with ``prefix``, by the plain 7x7 kernel it equals, in place.

    Returns:
        Whether there was a deep linear stem.
    """
    layer = deep_stem(state, f'{prefix}conv1')
    if layer is None:
        return False
    for key in [key for key in state if key.startswith(f'{prefix}conv1.kernel.stages.')]:
        del state[key]
    state[f'{prefix}conv1.weight'] = layer.weight
    return True
