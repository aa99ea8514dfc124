"""What a step on linear branches does to the kernel they add up to: a matrix for each output channel.

With scales s_b, linear maps A_b and weights w_b the kernel is W = sum_b s_b A_b w_b. Its gradient G gives the weights the gradients
s_b A_b^T G, so a step of gradient descent on the weights moves W by ``M G`` instead of G, ``M = sum_b s_b^2 A_b A_b^T``. Weight decay,
momentum and Nesterov's step are linear too: SGD on a plain kernel with the gradient ``M G`` goes where SGD on the branches goes.

The idea of training a plain network with the gradients of another one: "Re-parameterizing Your Optimizers rather than Architectures"
(ICLR 2023), whose factors for each element this extends to matrices over the k x k taps.
"""

import torch
from torch import Tensor

from .precision import without_autocast
from .squeeze import Branches, branch_kernels, frequency_prior


def gradient_matrix(scale: dict[str, Tensor], kernel_size: int) -> Tensor:
    """``M = sum_b s_b^2 A_b A_b^T`` for the branches origin, avg, freq and point.

    Args:
        scale: The scales [O] of each branch, by its name.
        kernel_size: k.

    Returns:
        [O, k*k, k*k], symmetric, in float64.
    """
    taps = kernel_size * kernel_size
    total: Tensor | None = None
    for name, row in scale.items():
        s = row.detach().double()
        # The columns of s_b A_b are the kernels of unit weights.
        unit = torch.eye(taps, dtype=s.dtype, device=s.device)[None] if name == 'origin' else s.new_ones(1, 1, 1, 1)
        weights = Branches(scale=s[None], prior=frequency_prior(len(s), kernel_size, s.device, s.dtype))._replace(**{name: unit})
        columns = branch_kernels(weights, (len(s), 1, kernel_size, kernel_size))[name]
        product = columns @ columns.mT
        total = product if total is None else total + product
    assert total is not None
    return total


def multiply_taps(kernel: Tensor, matrix: Tensor) -> Tensor:
    """``M``, [O, k*k, k*k], times a kernel [O, I/g, k, k] or its gradient, over the taps of each channel; in its memory format."""
    with without_autocast(kernel):
        if kernel.shape[-1] == 1:
            return kernel * matrix[..., None]
        last = kernel.permute(0, 2, 3, 1)
        if last.is_contiguous():
            return torch.bmm(matrix, last.flatten(1, 2)).view_as(last).permute(0, 3, 1, 2)
        return torch.bmm(kernel.flatten(2), matrix).view(kernel.shape)
