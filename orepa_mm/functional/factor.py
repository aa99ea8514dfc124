"""A large kernel as stacked 3x3 kernels: the inverse of :func:`.compose`, for the kernels it can be done exactly for."""

from itertools import product

from torch import Tensor

from ..errors import LayerError


def _centres(reach: int) -> list[int]:
    """Offsets whose neighbours, themselves included, are all offsets from ``-reach`` to ``reach``."""
    centres = list(range(1 - reach, reach, 3))
    return centres if centres[-1] + 1 >= reach else [*centres, reach - 1]


def shifts_and_kernel(weight: Tensor, groups: int = 1) -> list[Tensor]:
    """(k - 1) / 2 kernels of 3x3 that :func:`.compose` makes ``weight`` of again, bit for bit.

    All but the last hold ones and zeros: they copy each input channel to as many channels as it takes, each shifted by another offset, so
    that a 3x3 kernel over the shifted channels reaches every position of the large kernel.

    Args:
        weight: [O, I/g, k, k], k odd, at least 5.
        groups: g.

    Returns:
        Kernels [O, I/g, 3, 3], then [O, O/g, 3, 3].

    Raises:
        LayerError: Unless O >= n n I with n = k / 3, rounded up: 9 output channels for an input channel of a 7x7 kernel.
    """
    out_channels, inputs, k, _ = weight.shape
    reach, per_group = k // 2, out_channels // groups
    centres = _centres(reach)
    needed = len(centres) ** 2 * inputs
    if per_group < needed:
        raise LayerError(
            f'a kernel {tuple(weight.shape)} with groups={groups} is no product of stacked 3x3 kernels in general: that takes at least '
            f'{needed * groups} output channels'
        )
    stages = [weight.new_zeros(out_channels, inputs if i == 0 else per_group, 3, 3) for i in range(reach)]
    for g, (channel, (i, y, x)) in product(range(groups), enumerate(product(range(inputs), centres, centres))):
        here = g * per_group + channel
        rest_y, rest_x = y, x
        for number, stage in enumerate(stages[:-1]):
            step_y, step_x = (max(-1, min(1, rest)) for rest in (rest_y, rest_x))
            rest_y, rest_x = rest_y - step_y, rest_x - step_x
            if number == 0:
                stage[here, i, 1 + step_y, 1 + step_x] = 1
            else:  # a later kernel slides over the earlier, so its taps count the other way
                stage[here, channel, 1 - step_y, 1 - step_x] = 1
        # Each position belongs to the first centre that reaches it.
        rows, columns = ([p for p in range(c - 1, c + 2) if next(d for d in centres if abs(p - d) < 2) == c] for c in (y, x))
        for row, column in product(rows, columns):
            stages[-1][:, channel, 1 - (row - y), 1 - (column - x)] = weight[:, i, reach + row, reach + column]
    return stages
