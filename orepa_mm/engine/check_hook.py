"""Checks before a run."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..checkpoints.beside import has_branches_beside
from ..checkpoints.checking import check_pretrained, check_state_dict
from ..checkpoints.checks_weights import ChecksWeights
from ..checkpoints.loaders import use_safe_loaders
from ..checkpoints.plain_kernels import plain_kernels
from ..checkpoints.reading import state_dict_of
from ..errors import CheckpointError
from ..layers.stem import DeepLinearKernel
from ..optim import attached_to
from ..reparam.convert import is_sharded
from .changed_parameters import optimizers_of
from .distributed import unwrapped

LONGEST_STEP = 3.0  # of a plain kernel's, before it is warned of


@HOOKS.register_module()
class CheckHook(Hook):
    """Refuse weights that loaders would drop in silence, and warn of learning rates that do nothing or too much.

    mmengine loads without strictness: a checkpoint in another form or of another architecture leaves layers at random, and only the log
    says so. Fine-tuning may replace heads, resuming and testing must find every key. Files are read without running code from them,
    downloaded ones too, whichever distribution of mmengine runs.

    A plain stem that was loaded as a deep linear one moves many times as far in a step, so it is warned of, with the multiplier it takes.

    Fires before a run, and when a checkpoint has been read but not yet been loaded into the model::

        custom_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook')]

    Raises:
        CheckpointError: When a checkpoint of ``init_cfg``, ``load_from`` or ``resume`` does not fit the model.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        use_safe_loaders()  # not later: FlexibleRunner loads before before_run

    def before_run(self, runner: Runner) -> None:
        if _is_training(runner):
            with _whole(runner.model):
                check_pretrained(unwrapped(runner.model))
            _check_multipliers(runner)

    def before_train(self, runner: Runner) -> None:
        if not is_sharded(runner.model):
            _check_stems(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        with _whole(runner.model):
            self._check(runner, checkpoint)

    def _check(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        path = runner.cfg.get('load_from') or 'the checkpoint to resume from'
        resuming = _is_training(runner) and runner.cfg.get('resume')
        if resuming and isinstance(runner.model, FullyShardedDataParallel):
            raise CheckpointError(
                f"{path}: a sharded training (FSDP) cannot be resumed, as mmengine's strategy does not hand torch the optimizer's state as "
                'torch takes it; start a new run from its weights, with load_from instead of resume.'
            )
        network, state = unwrapped(runner.model), state_dict_of(checkpoint)
        plain = plain_kernels(network, state)
        if plain and resuming and 'optimizer' in checkpoint:
            raise CheckpointError(
                f'{path}: cannot be resumed, because it is of a model without training-time branches and its optimizer state belongs to '
                'other parameters; start a new run from its weights, with load_from instead of resume.'
            )
        if resuming and has_branches_beside(checkpoint) and not any(map(attached_to, optimizers_of(runner))):
            raise CheckpointError(
                f"{path}: was written with branches beside the optimizer; resume it with the BranchesHook of that run's default_hooks, or "
                'start a new run from its weights, with load_from instead of resume.'
            )
        if resuming and not {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys():
            raise CheckpointError(
                f'{path}: cannot be resumed, because it holds weights only; start a new run from it, with load_from instead of resume.'
            )
        check_state_dict(network, state, path, partial=_is_training(runner) and not resuming)
        backbones = tuple(f'{name}.' for name, module in network.named_modules() if isinstance(module, ChecksWeights))
        others = [name for name in plain if not name.startswith(backbones)]
        if others:
            runner.logger.info(f'{len(others)} plain convolutions of the checkpoint outside the backbone are expanded into branches.')


def _is_training(runner: Runner) -> bool:
    return isinstance(runner.optim_wrapper, OptimWrapper)  # built for training only


def _whole(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts, a sharded model has its parameters in their own shapes, for all processes."""
    sharded = isinstance(model, FullyShardedDataParallel)
    return FullyShardedDataParallel.summon_full_params(model, writeback=False) if sharded else nullcontext()


def _check_multipliers(runner: Runner) -> None:
    """A learning-rate multiplier on frozen parameters, or on none, does nothing."""
    keys = ((runner.cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}
    for key, settings in keys.items():
        if 'lr_mult' not in settings:
            continue
        parameters = [p for name, p in runner.model.named_parameters() if key in name]
        if not parameters:
            runner.logger.warning(f'optim_wrapper.paramwise_cfg.custom_keys: no parameter name contains "{key}", so it does nothing.')
        elif not any(p.requires_grad for p in parameters):
            runner.logger.warning(
                f'All parameters of "{key}" are frozen, so its lr_mult does nothing: set frozen_stages=-1 of the backbone.'
            )


def _check_stems(runner: Runner) -> None:
    """A plain kernel that was loaded as a product of kernels moves many times as far at the same learning rate."""
    rates: dict[nn.Parameter, float] = {}
    weights: Counter[float] = Counter()  # how many each learning rate has
    for group in (group for optimizer in optimizers_of(runner) for group in optimizer.param_groups):
        rate = float(group.get('initial_lr', group['lr']))
        for parameter in group['params']:
            if parameter.requires_grad and rate:
                rates[parameter] = rate
                weights[rate] += parameter.numel()
    for name, kernel in unwrapped(runner.model).named_modules():
        if not isinstance(kernel, DeepLinearKernel):
            continue
        rate = max(rates.get(p, 0.0) for p in kernel.parameters())
        if not rate or not kernel.only_shifts:
            continue
        usual = weights.most_common(1)[0][0]
        times = kernel.step() * rate / usual
        if times > LONGEST_STEP:
            runner.logger.warning(
                f'{name.removesuffix(".kernel")}: a plain kernel was loaded as a product of {len(kernel.stages)}, and a step moves it '
                f'{times:.0f} times as far as a plain one at the usual learning rate. Set plain_stem=True of the backbone, freeze it, or '
                f'give it an lr_mult of about {rate / usual / times:.1g} (docs/stem.md).'
            )
