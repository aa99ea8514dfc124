"""Re-parameterization: layers and blocks with branches become plain convolutions."""

from .convert import Swap, plan_swaps, reparameterize, reparameterized
from .expand import expand

__all__ = ['Swap', 'expand', 'plan_swaps', 'reparameterize', 'reparameterized']
