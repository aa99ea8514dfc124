"""Re-parameterization: layers and blocks with branches become plain convolutions."""

from .convert import Swap, plan_swaps, reparameterize, reparameterized
from .expand import expand
from .gradient_form import gradient_form
from .prune import prune_branches

__all__ = ['Swap', 'expand', 'gradient_form', 'plan_swaps', 'prune_branches', 'reparameterize', 'reparameterized']
