"""Hands training over from linear branches to plain kernels, once, optimizer and averaged weights included."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ..checkpoints.reading import state_dict_of
from ..errors import GradientFormError
from ..reparam.gradient_form import check_gradient_form, gradient_form, gradient_form_in, is_gradient_form
from .changed_parameters import changing_averages, optimizers_of, wrap_again
from .distributed import unwrapped


@HOOKS.register_module()
class GradientFormHook(Hook):
    """Turns a model with linear branches into gradient form, once in a training: see :func:`orepa_mm.gradient_form`.

    Until then the branches train, and with them their scales; from then on the scales are constants, and a step costs what the plain
    network's does. The kernels keep the momentum of their branches; averaged weights (``EMAHook``) change their form too. A checkpoint
    written afterwards resumes with this hook, and loads into the config without it, where its kernels are expanded into branches.

    Fires before the epoch or iteration it is given, and after a checkpoint is read. What cannot be handed over is refused before the
    training starts::

        model = dict(backbone=dict(branches='light'))
        custom_hooks = [dict(type='GradientFormHook', epoch=5)]

    Args:
        epoch: Before which to change, counted from 0.
        iteration: The same, for a training by iterations.

    Raises:
        GradientFormError: Unless one of ``epoch`` and ``iteration`` is given, as :func:`orepa_mm.gradient_form`, and for
            ``paramwise_cfg=dict(custom_l2=True)``, which decays through the branches.
    """

    priority = 'HIGHEST'  # before CheckHook looks at a checkpoint

    def __init__(self, epoch: int | None = None, iteration: int | None = None) -> None:
        if (epoch is None) == (iteration is None):
            raise GradientFormError('GradientFormHook: give one of epoch and iteration')
        self.epoch, self.iteration = epoch, iteration
        self._done = False

    def before_train(self, runner: Any) -> None:
        if self._done:
            return
        paramwise = (runner.cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}
        if paramwise.get('custom_l2'):
            raise GradientFormError(
                'GradientFormHook: paramwise_cfg.custom_l2=True decays through the branches, which gradient form has not: take one out'
            )
        check_gradient_form(unwrapped(runner.model), optimizers_of(runner))

    def before_train_epoch(self, runner: Any) -> None:
        if self.epoch is not None and runner.epoch >= self.epoch:
            self._change(runner)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.iteration is not None and runner.iter >= self.iteration:
            self._change(runner)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Change the form before weights of that form, and an optimizer's state, are loaded."""
        if gradient_form_in(state_dict_of(checkpoint)):
            self._change(runner)

    def _change(self, runner: Any) -> None:
        if self._done:
            return
        self._done = True
        model = unwrapped(runner.model)
        if is_gradient_form(model):
            return
        gradient_form(model, optimizers_of(runner))
        for average in changing_averages(runner):
            gradient_form(average)
        wrap_again(runner)
        print_log('GradientFormHook: the branches are plain kernels now, trained as the branches would be.', logger='current')
