"""Re-parameterization: layers with branches become plain convolutions."""

from .convert import FuseError, Swap, plan_swaps, reparameterize, reparameterized

__all__ = ['FuseError', 'Swap', 'plan_swaps', 'reparameterize', 'reparameterized']
