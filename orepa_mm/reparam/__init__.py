"""Re-parameterization: layers and blocks with branches become plain convolutions."""

from .blocks import is_mergeable_block
from .convert import Swap, is_reparameterizable, plan_swaps, reparameterize, reparameterized

__all__ = ['Swap', 'is_mergeable_block', 'is_reparameterizable', 'plan_swaps', 'reparameterize', 'reparameterized']
