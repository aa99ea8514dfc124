"""Re-parameterization: layers and blocks with branches become plain convolutions."""

from .convert import Swap, plan_swaps, reparameterize, reparameterized

__all__ = ['Swap', 'plan_swaps', 'reparameterize', 'reparameterized']
