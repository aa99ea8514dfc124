"""Adaptive average pooling that is right at every size in an exported graph."""

import torch
from torch import Tensor, nn


class AdaptiveAveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products; None keeps the input's rows or columns.

    ONNX has no such operator, and what exporters make of it keeps the windows of the size it was exported with.
    """

    def __init__(self, rows: int | None, columns: int | None) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            x = self.averages(self.rows, x.shape[2], x) @ x
        if self.columns is not None:
            x = x @ self.averages(self.columns, x.shape[3], x).T
        return x

    @staticmethod
    def averages(count: int, size: int, like: Tensor) -> Tensor:
        """Matrix [count, size] whose row i averages the inputs floor(i * size / count) .. ceil((i + 1) * size / count) - 1."""
        i = torch.arange(count, device=like.device).unsqueeze(1)
        position = torch.arange(size, device=like.device)
        start, end = i * size // count, ((i + 1) * size + count - 1) // count
        inside = (start <= position) & (position < end)
        return inside.to(like.dtype) / (end - start)


def replace_adaptive_pools(model: nn.Module) -> None:
    """Put :class:`AdaptiveAveragePool` for every average pooling to more than one pixel, in place."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                size = child.output_size
                setattr(parent, name, AdaptiveAveragePool(*(size if isinstance(size, tuple) else (size, size))))
