"""Exchanging parameters of an optimizer."""

from torch import nn
from torch.optim import Optimizer


def exchange(optimizer: Optimizer, new: dict[int, list[tuple[str, nn.Parameter]]]) -> None:
    """Put parameters in the place of others, in their groups; under their names where the optimizer was built with names.

    Args:
        optimizer: Whose groups are changed, and whose states are not.
        new: By the id of a parameter what comes in its place, or [].
    """
    for group in optimizer.param_groups:
        names = group.get('param_names', [''] * len(group['params']))
        pairs = [each for pair in zip(names, group['params'], strict=True) for each in new.get(id(pair[1]), [pair])]
        group['params'] = [parameter for _, parameter in pairs]
        if 'param_names' in group:
            group['param_names'] = [name for name, _ in pairs]
