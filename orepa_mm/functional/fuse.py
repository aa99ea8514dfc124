"""Folding a norm with fixed statistics into the convolution before it."""

import torch
from torch import Tensor


def fuse_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Fold ``gamma * (y - running_mean) / sqrt(running_var + eps) + beta`` into the convolution that gives ``y``.

    Args:
        weight: Kernel, [O, I/g, kh, kw].
        bias: Bias of the convolution, [O], or None.
        running_mean: Mean of the norm, [O].
        running_var: Variance of the norm, [O].
        eps: Added to the variance.
        gamma: Scale of the norm, [O]; None for 1.
        beta: Shift of the norm, [O]; None for 0.

    Returns:
        Kernel [O, I/g, kh, kw] and bias [O] in ``weight``'s dtype; the arithmetic runs in float32 or better.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    factor = (running_var.to(dtype) + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma
    shift = -running_mean.to(dtype) if bias is None else bias - running_mean.to(dtype)
    shift = shift * factor
    if beta is not None:
        shift = shift + beta
    fused = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    return fused.to(weight.dtype), shift.to(weight.dtype)
