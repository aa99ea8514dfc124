"""Hooks of the studies' own configs, which runs.py lets the tools import."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Puts the model's weights into channels_last, which halves the time of a depthwise network on a CPU."""

    def before_run(self, runner: Runner) -> None:
        runner.model.to(memory_format=torch.channels_last)


@HOOKS.register_module()
class FixedNormsHook(Hook):
    """Keeps the backbone's norms at their pretrained statistics, as ``norm_eval=True`` does where a backbone has that."""

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        for module in runner.model.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
