"""RepVGG's weight decay of the kernel that a block deploys instead of the kernels it trains."""

from torch import Tensor


def repvgg_l2(kernel_3x3: Tensor, kernel_1x1: Tensor, factor_3x3: Tensor, factor_1x1: Tensor) -> Tensor:
    """Squared norm of a block's kernel, the "custom L2" of RepVGG's published training code.

    The centre of the 3x3 kernel and the 1x1 kernel act as one: what is penalised is the centre they add up to after their norms,
    divided by the norms' scale. The other taps are penalised as they are.

    Args:
        kernel_3x3: [O, I/g, 3, 3].
        kernel_1x1: [O, I/g, 1, 1].
        factor_3x3: What the norm after the 3x3 kernel multiplies each channel with, [O].
        factor_1x1: The same for the 1x1 kernel, [O].

    Returns:
        A scalar.
    """
    a, b = factor_3x3.view(-1, 1, 1, 1), factor_1x1.view(-1, 1, 1, 1)
    centre = kernel_3x3[..., 1:2, 1:2]
    merged = (centre * a + kernel_1x1 * b).square() / (a.square() + b.square())
    return kernel_3x3.square().sum() - centre.square().sum() + merged.sum()
