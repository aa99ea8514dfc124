"""Re-parameterization: layers and blocks with branches become plain convolutions."""

from .convert import Swap, plan_swaps, reparameterize, reparameterized
from .expand import expand
from .prune import prune_branches

__all__ = ['Swap', 'expand', 'plan_swaps', 'prune_branches', 'reparameterize', 'reparameterized']
