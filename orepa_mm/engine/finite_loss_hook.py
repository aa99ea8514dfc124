"""Ends a training whose loss is not finite, before it spoils the weights."""

from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..errors import NotFiniteError
from ..reparam.comparison import tensors
from ..torch_versions import is_autocast_enabled, is_compiling, keep_step_hooks
from .changed_parameters import optimizers_of
from .distributed import unwrapped


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Refuse to take a step from a loss that is not finite, and name the layer where the values first are not.

    Such a step would make every weight NaN, and the run would go on for days. The error comes before the optimizer's step: weights,
    checkpoints and validations are never those after it. The loss is tested on the GPU, and the answer is read when the backward pass has
    been queued behind it, so the GPU is not kept waiting. Where a loss scaler skips such steps, in fp16 training, a few in a row are let
    through. An optimizer that is not torch's, such as DeepSpeed's, takes the step; the error follows before a checkpoint or a validation.

    Fires in each forward pass of training and before each step; a step compiled by ``compile=True`` is not looked at::

        default_hooks = dict(finite_loss=dict(type='FiniteLossHook'))

    Args:
        patience: How many losses in a row may be not finite where the optimizer wrapper has a loss scaler.

    Raises:
        NotFiniteError: When a loss is not finite.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self._allowed = self._seen = 0
        self._handles: list[RemovableHandle] = []
        self._losses: list[_Loss] = []  # of forward passes that were not looked at yet

    def before_train(self, runner: Runner) -> None:
        self.after_train(runner)
        self._allowed, self._seen = self.patience if hasattr(runner.optim_wrapper, 'loss_scaler') else 0, 0
        self._handles = [unwrapped(runner.model).register_forward_hook(self._note, with_kwargs=True)]
        keep_step_hooks()
        optimizers = [each for each in optimizers_of(runner) if isinstance(each, Optimizer)]
        self._handles += [optimizer.register_step_pre_hook(lambda *_: self._look()) for optimizer in optimizers]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._look()  # where the step was skipped

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._losses = [], []

    def _note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], losses: Any) -> None:
        if model.training and not is_compiling():
            self._losses.append(_Loss(losses, model, args, kwargs))

    def _look(self) -> None:
        if is_compiling():
            return
        losses, self._losses = self._losses, []
        for loss in losses:
            self._seen = 0 if loss.is_finite() else self._seen + 1
            if self._seen > self._allowed:
                raise NotFiniteError(_message(loss.model, loss.cause()))


class _Loss:
    """Whether the losses of a forward pass are finite, known once a GPU has come that far; and the pass, to be run again."""

    def __init__(self, losses: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.inputs = model, (args, kwargs)
        finite = _all_finite(losses)
        device = finite.device
        self._autocast = torch.autocast(device.type, enabled=is_autocast_enabled(device.type))
        self._finite, self._event = finite.to('cpu', non_blocking=finite.is_cuda), torch.cuda.Event() if finite.is_cuda else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def is_finite(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._finite)

    def cause(self) -> str | None:
        args, kwargs = self.inputs
        with self._autocast:
            return first_not_finite(self.model, *args, **kwargs)


def first_not_finite(model: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    """Path of the first module, innermost first, that gives values that are not finite when ``model`` runs; None where none does."""
    found: list[str] = []

    def look(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not found and not _all_finite(output):
            found.append(path)

    handles = [module.register_forward_hook(partial(look, path)) for path, module in model.named_modules() if path]
    try:
        with torch.no_grad():
            model.forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _all_finite(value: Any) -> Tensor:
    finite = [tensor.isfinite().all() for tensor in tensors(value)] or [torch.tensor(True)]
    return torch.stack([each.to(finite[0].device) for each in finite]).all()


def _message(model: nn.Module, path: str | None) -> str:
    if path is None:
        return 'the loss is not finite, though all layers give finite values: look at the targets and the loss. No weight has been changed.'
    module = model.get_submodule(path)
    spoilt = [name for name, value in module.state_dict().items() if not _all_finite(value)]
    if spoilt:
        cause = f'its "{spoilt[0]}" is not finite, so the gradients of an earlier step were not: clip them (optim_wrapper.clip_grad) or'
    else:
        cause = 'its own weights are finite, so values became too large: use bfloat16 or float32 instead of float16, clip_grad or'
    return f'the loss is not finite: the first to give such values is "{path}", a {type(module).__name__}; {cause} a lower learning rate.'
