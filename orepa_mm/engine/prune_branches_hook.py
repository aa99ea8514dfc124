"""Prunes branches once in a training, optimizer and averaged weights included."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import PruneError
from ..layers.adapting import branches_in
from ..optim import attached_to
from ..optim.prune import drop_branches_of
from ..reparam.prune import branches_below, check_threshold, drop_branches, kernels_with_branches
from .changed_parameters import changing_averages, optimizers_of, wrap_again
from .distributed import unwrapped


@HOOKS.register_module()
class PruneBranchesHook(Hook):
    """Moves branches that hardly add to their kernel into the plain branch, once in a training; the outputs stay, to rounding.

    The optimizer loses what is dropped and keeps the momentum of what stays; averaged weights (``EMAHook``) lose the same branches. A
    checkpoint written afterwards resumes with this hook, and loads into the config without it, where pruned branches start at zero.
    Branches beside the optimizer (:class:`.BranchesHook`) are pruned likewise, and resume without this hook as well.

    Fires before the epoch or iteration it is given, and after a checkpoint is read::

        default_hooks = dict(prune=dict(type='PruneBranchesHook', epoch=60, threshold=0.02))

    Args:
        threshold: As for :func:`orepa_mm.prune_branches`.
        epoch: Before which to prune, counted from 0.
        iteration: The same, for a training by iterations.

    Raises:
        PruneError: Unless one of ``epoch`` and ``iteration`` is given, for a threshold outside 0..1, and where there is nothing to prune.
    """

    priority = 'HIGHEST'  # before CheckHook and EMAHook read a checkpoint

    def __init__(self, threshold: float, epoch: int | None = None, iteration: int | None = None) -> None:
        if (epoch is None) == (iteration is None):
            raise PruneError('PruneBranchesHook: give one of epoch and iteration')
        check_threshold(threshold)
        self.threshold, self.epoch, self.iteration = threshold, epoch, iteration

    def before_train_epoch(self, runner: Runner) -> None:
        if self.epoch is not None and runner.epoch == self.epoch:
            self._prune(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.iteration is not None and runner.iter == self.iteration:
            self._prune(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Drop what the checkpoint was pruned of before its weights and its optimizer's state are loaded."""
        model, state = unwrapped(runner.model), checkpoint.get('state_dict', checkpoint)
        names = {}
        for path, kernel in kernels_with_branches(model):
            there = branches_in(state, f'{path}.')
            names[path] = [name for name in kernel.branches if 'origin' in there and name not in there]
        if any(names.values()):
            self._drop(runner, names)

    def _prune(self, runner: Runner) -> None:
        attached = [each for each in map(attached_to, optimizers_of(runner)) if each is not None]
        names = {path: gone for each in attached for path, gone in each.prune(self.threshold).items()}
        model = unwrapped(runner.model)
        if not names or any(kernels_with_branches(model)):
            inside = branches_below(model, self.threshold)
            self._drop(runner, inside)
            names |= inside
        count = sum(map(len, names.values()))
        print_log(f'PruneBranchesHook: {count} branches of {len(names)} kernels added less than {self.threshold:g}.', logger='current')

    def _drop(self, runner: Runner, names: dict[str, list[str]]) -> None:
        drop_branches_of(unwrapped(runner.model), names, optimizers_of(runner))
        for average in changing_averages(runner):
            drop_branches(average, names)
        wrap_again(runner)
