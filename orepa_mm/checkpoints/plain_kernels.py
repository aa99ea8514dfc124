"""Plain kernels in a checkpoint for layers with branches, which loading expands."""

from torch import Tensor, nn

from ..layers import ReparameterizableConv2d


def plain_kernels(model: nn.Module, state: dict[str, Tensor], prefix: str = '') -> list[str]:
    """Paths of the layers with branches that a state dict has a plain kernel for under ``prefix``, which loading expands."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, ReparameterizableConv2d))
    return [name for name, layer in layers if layer.holds_plain_kernel(state, f'{prefix}{name}.' if name else prefix)]
