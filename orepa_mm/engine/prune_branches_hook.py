"""Prunes branches once in a training, optimizer and averaged weights included."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..errors import PruneError
from ..layers.kernels import branches_in
from ..reparam.prune import branches_below, check_threshold, drop_branches, kernels_with_branches
from .changed_parameters import changing_averages, optimizers_of, wrap_again
from .distributed import unwrapped


@HOOKS.register_module()
class PruneBranchesHook(Hook):
    """Moves branches that hardly add to their kernel into the plain branch, once in a training; the outputs stay, to rounding.

    The optimizer loses what is dropped and keeps the momentum of what stays; averaged weights (``EMAHook``) lose the same branches. A
    checkpoint written afterwards resumes with this hook, and loads into the config without it, where pruned branches start at zero.

    Fires before the epoch or iteration it is given, and after a checkpoint is read::

        custom_hooks = [dict(type='PruneBranchesHook', epoch=60, threshold=0.02)]

    Args:
        threshold: As for :func:`orepa_mm.prune_branches`.
        epoch: Before which to prune, counted from 0.
        iteration: The same, for a training by iterations.

    Raises:
        PruneError: Unless one of ``epoch`` and ``iteration`` is given, and for a threshold outside 0..1.
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook reads a checkpoint

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
        names = branches_below(unwrapped(runner.model), self.threshold)
        self._drop(runner, names)
        count = sum(name != 'origin' for each in names.values() for name in each)
        print_log(f'PruneBranchesHook: {count} branches of {len(names)} kernels added less than {self.threshold:g}.', logger='current')

    def _drop(self, runner: Runner, names: dict[str, list[str]]) -> None:
        model = unwrapped(runner.model)
        before, branches = dict(model.named_parameters()), {path: kernel.branches for path, kernel in kernels_with_branches(model)}
        drop_branches(model, names)
        after = dict(model.named_parameters())
        rows = {}
        for path, kernel in kernels_with_branches(model):
            if kernel.branches != branches[path]:
                rows[id(before[f'{path}.scale'])] = (after[f'{path}.scale'], [branches[path].index(name) for name in kernel.branches])
        kept = {id(parameter) for parameter in after.values()}
        dropped = {id(parameter) for parameter in before.values()} - kept - rows.keys()
        for optimizer in optimizers_of(runner):
            _edit_optimizer(optimizer, dropped, rows)
        for average in changing_averages(runner):
            drop_branches(average, names)
        wrap_again(runner)


def _edit_optimizer(optimizer: torch.optim.Optimizer, dropped: set[int], rows: dict[int, tuple[nn.Parameter, list[int]]]) -> None:
    """Take parameters out of an optimizer, and put those with fewer rows in the place of the old ones, momentum included.

    Args:
        optimizer: Of torch.
        dropped: ``id`` of the parameters to take out.
        rows: For the ``id`` of a parameter what takes its place, and which of its rows that has.
    """
    for group in optimizer.param_groups:
        for old in group['params']:
            state = optimizer.state.pop(old, None) if id(old) in dropped or id(old) in rows else None
            if state and id(old) in rows:
                new, kept = rows[id(old)]
                per_row = {key for key, value in state.items() if getattr(value, 'shape', None) == old.shape}
                optimizer.state[new] = {key: value[kept] if key in per_row else value for key, value in state.items()}
        group['params'] = [rows[id(p)][0] if id(p) in rows else p for p in group['params'] if id(p) not in dropped]
