"""The depthwise then pointwise branch of kernels in rows, [g, O/g, k*k, I/g], and its gradients.

Every input channel has a tiny matrix product of its own, [O/g x E] by [E x k*k]. A CPU is faster with long rows of input channels, one
expansion channel or position at a time.
"""

from torch import Tensor

BLOCK = 16  # output channels that are added up side by side, as long as their sums stay in the caches


def add_separable(w: Tensor, pointwise: Tensor, depthwise: Tensor) -> None:
    """Add sum_e P_e D_e to ``w``, [g, O/g, k*k, I/g].

    Args:
        pointwise: P, [g, O/g, E, I/g].
        depthwise: D, [g, E, k*k, I/g].
    """
    for e in range(depthwise.shape[1]):
        w.addcmul_(pointwise[:, :, e, None], depthwise[:, None, e])


def pointwise_gradient(g: Tensor, depthwise: Tensor) -> Tensor:
    """sum_p (G D_e), [g, O/g, E, I/g], of the gradient G [g, O/g, k*k, I/g]."""
    result = g[:, :, None, 0] * depthwise[:, None, :, 0]
    for p in range(1, g.shape[2]):
        result.addcmul_(g[:, :, None, p], depthwise[:, None, :, p])
    return result


class DepthwiseGradient:
    """sum_o (P_e G), [g, E, k*k, I/g], of output channels that come a slice at a time.

    Args:
        depthwise: D, whose gradient it is.
        out_channels: O/g.
    """

    def __init__(self, depthwise: Tensor, out_channels: int) -> None:
        # Each channel of a block has its own sums: adding to memory in rows, where a sum over all channels would jump between them.
        groups, *rest = depthwise.shape
        self._sums = depthwise.new_zeros(groups, min(BLOCK, out_channels), *rest)

    def add(self, g: Tensor, pointwise: Tensor) -> None:
        """Add the output channels of G [g, slice, k*k, I/g] and P [g, slice, E, I/g]."""
        block = self._sums.shape[1]
        for g_block, pointwise_block in zip(g.split(block, 1), pointwise.split(block, 1), strict=True):
            self._sums[:, : g_block.shape[1]].addcmul_(g_block[:, :, None], pointwise_block[:, :, :, None])

    def total(self) -> Tensor:
        return self._sums.sum(1)
