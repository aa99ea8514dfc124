"""What runs inside a Runner: the hooks, the optimizer constructor and the checks of checkpoints."""

from .branches_hook import BranchesHook
from .check_hook import CheckHook
from .checkpoint_hook import AtomicCheckpointHook
from .finite_loss_hook import FiniteLossHook
from .optim_wrapper_constructor import OREPAOptimWrapperConstructor
from .orepa_hook import OREPAHook
from .prune_branches_hook import PruneBranchesHook
from .reparameterize_hook import ReparameterizeHook
from .seed_hook import SeedHook
from .squeeze_graph_hook import SqueezeGraphHook

__all__ = [
    'AtomicCheckpointHook',
    'BranchesHook',
    'CheckHook',
    'FiniteLossHook',
    'OREPAHook',
    'OREPAOptimWrapperConstructor',
    'PruneBranchesHook',
    'ReparameterizeHook',
    'SeedHook',
    'SqueezeGraphHook',
]
