"""What else in a run holds a model's parameters, for hooks that put others in their place: optimizers, averages, a distributed wrapper."""

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.optim import Optimizer


def optimizers_of(runner: Any) -> list[Optimizer]:
    """The optimizers of a run; none in a test."""
    wrapper = getattr(runner, 'optim_wrapper', None)
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each.optimizer for each in wrappers if isinstance(each, OptimWrapper)]  # in a test the wrapper is still a config


def changing_averages(runner: Any) -> Iterator[nn.Module]:
    """The averaged models of ``EMAHook``, each to be changed as the model is; what is averaged is looked up again afterwards."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
            average: BaseAveragedModel = hook.ema_model
            yield average.module
            average.avg_parameters = average.module.state_dict() if average.update_buffers else dict(average.module.named_parameters())


def wrap_again(runner: Any) -> None:
    """A distributed wrapper waits for the gradients of the parameters it was built with: build it anew."""
    if is_model_wrapper(runner.model):
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), runner.model.module)
