"""Ends a training whose loss is not finite, before it spoils the weights."""

from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import NotFiniteError
from ..reparam.comparison import tensors
from .distributed import unwrapped


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Refuse to take a step from a loss that is not finite, and name the layer where the values first are not.

    Such a step would make every weight NaN, and the run would go on for days. The error comes between the forward and the backward pass:
    the weights are those of the step before. Where a loss scaler skips such steps, in fp16 training, a few in a row are let through.

    Fires in each forward pass of training; a step compiled by ``compile=True`` is not looked at::

        custom_hooks = [dict(type='FiniteLossHook')]

    Args:
        patience: How many losses in a row may be not finite where the optimizer wrapper has a loss scaler.

    Raises:
        NotFiniteError: When a loss is not finite.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self._allowed = self._seen = 0
        self._handle: RemovableHandle | None = None

    def before_train(self, runner: Runner) -> None:
        self.after_train(runner)
        self._allowed, self._seen = self.patience if hasattr(runner.optim_wrapper, 'loss_scaler') else 0, 0
        model = unwrapped(runner.model)
        self._handle = model.register_forward_hook(self._check, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _check(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], losses: Any) -> None:
        if not model.training or torch.compiler.is_compiling():
            return
        if _is_finite(losses):
            self._seen = 0
            return
        self._seen += 1
        if self._seen > self._allowed:
            raise NotFiniteError(_message(model, first_not_finite(model, *args, **kwargs)))


def first_not_finite(model: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    """Path of the first module, innermost first, that gives values that are not finite when ``model`` runs; None where none does."""
    found: list[str] = []

    def look(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not found and not _is_finite(output):
            found.append(path)

    handles = [module.register_forward_hook(partial(look, path)) for path, module in model.named_modules() if path]
    try:
        with torch.no_grad():
            model.forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _is_finite(value: Any) -> bool:
    finite = [tensor.isfinite().all() for tensor in tensors(value)]
    # One wait for the accelerator, however many losses there are.
    return not finite or bool(torch.stack([each.to(finite[0].device) for each in finite]).all())


def _message(model: nn.Module, path: str | None) -> str:
    if path is None:
        return 'the loss is not finite, though all layers give finite values: look at the targets and the loss. No weight has been changed.'
    module = model.get_submodule(path)
    spoilt = [name for name, value in module.state_dict().items() if not _is_finite(value)]
    if spoilt:
        cause = f'its "{spoilt[0]}" is not finite, so the gradients of an earlier step were not: clip them (optim_wrapper.clip_grad) or'
    else:
        cause = 'its own weights are finite, so values became too large: use bfloat16 or float32 instead of float16, clip_grad or'
    return f'the loss is not finite: the first to give such values is "{path}", a {type(module).__name__}; {cause} a lower learning rate.'
