"""The one hook for a config with branches in the model."""

from functools import partialmethod
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils import is_method_overridden

from .check_hook import CheckHook
from .finite_loss_hook import FiniteLossHook
from .reparameterize_hook import ReparameterizeHook
from .squeeze_graph_hook import SqueezeGraphHook


@HOOKS.register_module()
class OREPAHook(Hook):
    """All that a model with branches wants: the four hooks below in one, which merges with the hooks of a base config.

    :class:`.ReparameterizeHook` validates and tests in deployed form, :class:`.CheckHook` refuses checkpoints that do not fit,
    :class:`.FiniteLossHook` ends a training whose loss is not finite, and :class:`.SqueezeGraphHook` squeezes all layers together on a GPU.
    Where a config has one of them by itself, that one is used, with its own arguments::

        default_hooks = dict(orepa=dict(type='OREPAHook'))

    Args:
        val, tolerance: As for :class:`.ReparameterizeHook`.

    Raises:
        OREPAError: As the four hooks.
    """

    priority = 'VERY_HIGH'

    def __init__(self, val: bool = True, tolerance: float | None = None) -> None:
        self.parts = [ReparameterizeHook(val, tolerance), CheckHook(), FiniteLossHook(), SqueezeGraphHook()]

    def _call(self, stage: str, runner: Runner, **kwargs: Any) -> None:
        if self is not next(hook for hook in runner.hooks if isinstance(hook, OREPAHook)):
            return  # a config has two
        for part in self.parts:
            if not any(isinstance(hook, type(part)) for hook in runner.hooks):
                getattr(part, stage)(runner, **kwargs)


for _stage in Hook.stages:
    if any(is_method_overridden(_stage, Hook, part) for part in (ReparameterizeHook, CheckHook, FiniteLossHook, SqueezeGraphHook)):
        setattr(OREPAHook, _stage, partialmethod(OREPAHook._call, _stage))
