"""Squeezing by a CUDA graph while a Runner trains."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from ..layers.squeeze_graph import SqueezeGraph, can_capture
from .distributed import unwrapped


@HOOKS.register_module()
class SqueezeGraphHook(Hook):
    """Squeezes all layers of a model together, by a CUDA graph, while it trains on a GPU: see :class:`.SqueezeGraph`.

    Does nothing on a CPU, for sharded models, and with ``compile=True``, which compiles the squeezing and with all branches is slower: the
    log says so. Gradients of all branches arrive together at the end of the backward pass, so with several GPUs they are sent after it
    instead of during it.

    Fires before and after a training::

        default_hooks = dict(squeeze_graph=dict(type='SqueezeGraphHook'))
    """

    def __init__(self) -> None:
        self.graph: SqueezeGraph | None = None

    def before_train(self, runner: Runner) -> None:
        self.after_train(runner)
        if isinstance(runner.model, FullyShardedDataParallel) or not can_capture(unwrapped(runner.model)):
            return
        if runner.cfg.get('compile'):
            runner.logger.warning('With compile=True no CUDA graph squeezes the branches; with all six, training is faster without it.')
            return
        self.graph = SqueezeGraph(unwrapped(runner.model))

    def after_train(self, runner: Runner) -> None:
        if self.graph is not None:
            self.graph.remove()
            self.graph = None
