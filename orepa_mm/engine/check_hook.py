"""Checks before a run."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from ..checkpoints.checking import check_pretrained, check_state_dict
from ..checkpoints.checks_weights import ChecksWeights
from ..checkpoints.loaders import use_safe_loaders
from ..checkpoints.plain_kernels import plain_kernels
from ..checkpoints.reading import state_dict_of
from ..errors import CheckpointError, UsageError, some
from ..layers import ReparameterizableConv2d
from ..layers.stem import DeepLinearKernel
from ..registry import type_name
from ..reparam.convert import is_sharded
from .changed_parameters import optimizers_of
from .checkpoint_hook import BESIDE
from .distributed import unwrapped
from .resuming import NAMES, check_optimizer, check_training, names_in_optimizers

LONGEST_STEP = 3.0  # of a plain kernel's, before it is warned of


@HOOKS.register_module()
class CheckHook(Hook):
    """Refuse what would be dropped in silence, and warn of learning rates that do nothing or too much.

    mmengine loads without strictness: a checkpoint in another form or of another architecture leaves layers at random. Fine-tuning may
    replace heads, resuming and testing must find every key, and the optimizer's state must be of the same parameters. Files are read
    without running code from them, downloaded ones too. A training whose optimizer does not hold every trainable parameter ends before its
    first step. A plain stem that was loaded as a deep linear one moves many times as far in a step: the warning says which multiplier it
    takes.

    Fires before a run, and when a checkpoint has been read but not yet been loaded into the model::

        default_hooks = dict(check=dict(type='CheckHook'))

    Raises:
        CheckpointError: When a checkpoint of ``init_cfg``, ``load_from`` or ``resume`` does not fit, or none of those there can be resumed.
        UsageError: When a trainable parameter is in no optimizer.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        use_safe_loaders()  # not later: FlexibleRunner loads before before_run
        self._held = False

    def before_run(self, runner: Runner) -> None:
        if _is_training(runner):
            with _whole(runner.model):
                check_pretrained(unwrapped(runner.model))
            _check_multipliers(runner)
            _pass_over_branches(runner)

    def before_train(self, runner: Runner) -> None:
        if getattr(runner, '_resume', False) and not runner.iter and any(Path(runner.work_dir).glob('*.pth')):
            raise CheckpointError(f'{runner.work_dir}: last_checkpoint names none to resume from. {BESIDE}')
        if not is_sharded(runner.model):
            _check_stems(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 0 or not self._held:  # by iterations a resumed training does not begin with 0
            self._held = True
            if not is_sharded(runner.model):
                _check_held(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        with _whole(runner.model):
            self._check(runner, checkpoint)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if 'optimizer' in checkpoint:  # which knows parameters by their number only
            checkpoint['meta'][NAMES] = names_in_optimizers(runner)

    def _check(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        path = runner._load_from or 'the checkpoint to resume from'
        resuming = _is_training(runner) and runner._resume  # the config is empty where a Runner was built from objects
        network, state = unwrapped(runner.model), state_dict_of(checkpoint)
        plain = plain_kernels(network, state)
        if resuming:
            check_training(runner, checkpoint, path, bool(plain))
        check_state_dict(network, state, path, partial=_is_training(runner) and not resuming)
        if resuming:
            check_optimizer(runner, checkpoint, path)
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


def _check_held(runner: Runner) -> None:
    """A parameter that no optimizer has would stay as it is, without a word."""
    optimizers = optimizers_of(runner)
    if not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        return  # one that has copies of its own, such as DeepSpeed's
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group['params']}
    trainable = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
    unheld = [name for name, p in trainable.items() if id(p) not in held]
    if unheld:
        raise UsageError(
            f'{len(unheld)} of {len(trainable)} trainable parameters are in no optimizer and would not train ({some(unheld)}): '
            'the model was changed after the optimizer was built (expand it before), or the constructor of the optimizer passes over what '
            "it does not know by name (use constructor='OREPAOptimWrapperConstructor'); freeze what is not to train (requires_grad=False)."
        )


def _pass_over_branches(runner: Runner) -> None:
    """mmengine's transformation of graphs takes every input of a norm for a layer of torch, and ends with an error where it is none."""
    given = runner.cfg.get('efficient_conv_bn_eval') or []
    names = [given] if isinstance(given, str) else given
    modules = {name: attrgetter(name)(unwrapped(runner.model)) for name in names}
    able = [name for name, module in modules.items() if not any(isinstance(m, ReparameterizableConv2d) for m in module.modules())]
    if len(able) < len(names):
        runner.logger.warning('efficient_conv_bn_eval passes over modules with layers that have training-time branches.')
        runner.cfg.efficient_conv_bn_eval = able


def _check_multipliers(runner: Runner) -> None:
    """A learning-rate multiplier on frozen parameters, or on none, does nothing."""
    wrapper = runner.cfg.get('optim_wrapper') or {}
    rules = wrapper.get('paramwise_cfg') or {}
    passed_over = any(isinstance(m, ReparameterizableConv2d) and m.groups == m.in_channels for m in runner.model.modules())
    if passed_over and 'dwconv_decay_mult' in rules and type_name(wrapper.get('constructor')) != 'OREPAOptimWrapperConstructor':
        runner.logger.warning("dwconv_decay_mult passes over layers with branches: set constructor='OREPAOptimWrapperConstructor'.")
    for key, settings in (rules.get('custom_keys') or {}).items():
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
    groups = [group for optimizer in optimizers_of(runner) for group in optimizer.param_groups]
    rates = {p: float(group.get('initial_lr', group['lr'])) for group in groups for p in group['params'] if p.requires_grad}
    weights: Counter[float] = Counter()  # how many each learning rate has
    for parameter, rate in rates.items():
        weights[rate] += parameter.numel() * (rate > 0)
    for name, kernel in unwrapped(runner.model).named_modules():
        rate = max(rates.get(p, 0.0) for p in kernel.parameters()) if isinstance(kernel, DeepLinearKernel) else 0.0
        if not rate or not kernel.only_shifts:
            continue
        usual = weights.most_common(1)[0][0]
        times = kernel.step() * rate / usual
        if times > LONGEST_STEP:
            runner.logger.warning(
                f'{name.removesuffix(".kernel")}: a plain kernel was loaded as a product of {len(kernel.stages)}, and a step moves it '
                f'{times:.0f} times as far as a plain one at the usual learning rate. Set plain_stem=True of the backbone, freeze it, or '
                f'give it an lr_mult of about {rate / usual / times:.1g} (docs/learning_rate.md).'
            )
