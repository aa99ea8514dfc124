"""Re-parameterization: layers and blocks with branches become plain convolutions."""

from .convert import Swap, is_reparameterizable, plan_swaps, reparameterize, reparameterized
from .fold import FuseError

__all__ = ['FuseError', 'Swap', 'is_reparameterizable', 'plan_swaps', 'reparameterize', 'reparameterized']
