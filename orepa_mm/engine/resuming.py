"""Whether a run can go on from a checkpoint as if it had not been stopped."""

from itertools import zip_longest
from typing import Any

from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from ..checkpoints.beside import has_branches_beside
from ..checkpoints.checking import is_no_weight
from ..checkpoints.reading import state_dict_of
from ..errors import CheckpointError
from ..optim import attached_to
from .changed_parameters import optimizers_of
from .distributed import unwrapped

NAMES = 'names_in_optimizers'  # in the meta of a checkpoint
CHANGING = ('params', 'base_values', 'last_step', 'best', 'num_bad_epochs', 'cooldown_counter')  # of parameter groups and schedulers


def _refuse(path: str, reason: str) -> None:
    if reason:
        raise CheckpointError(f'{path}: {reason}; start a new run from its weights, with load_from instead of resume.')


def check_training(runner: Runner, checkpoint: dict[str, Any], path: str, plain: bool) -> None:
    """Refuse a checkpoint that is of no training, or of another kind of training; ``plain`` where it has kernels for layers with branches.

    Raises:
        CheckpointError: With the reason.
    """
    reason = ''
    if isinstance(runner.model, FullyShardedDataParallel):
        reason = "a sharded training (FSDP) cannot be resumed, as mmengine does not hand torch the optimizer's state as torch takes it"
    elif not {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys():
        reason = 'cannot be resumed, because it holds weights only'
    elif plain:
        reason = 'cannot be resumed, because it is of a model without branches: its optimizer state belongs to other parameters'
    elif has_branches_beside(checkpoint) and not any(map(attached_to, optimizers_of(runner))):
        reason = "was written with branches beside the optimizer; resume it with the BranchesHook of that run's default_hooks, or else"
    _refuse(path, reason)


def names_in_optimizers(runner: Runner) -> list[str]:
    """Of the parameters that optimizers have, in their order."""
    names = {id(p): name for name, p in unwrapped(runner.model).named_parameters()}
    return [names.get(id(p), '') for o in optimizers_of(runner) for group in o.param_groups for p in group['params']]


def check_optimizer(runner: Runner, checkpoint: dict[str, Any], path: str) -> None:
    """Refuse an optimizer's state of other parameters than the optimizer has now, and say which settings resuming overrides.

    Raises:
        CheckpointError: With the name of a parameter.
    """
    if not all(isinstance(optimizer, Optimizer) for optimizer in optimizers_of(runner)):
        return  # one that has copies of the parameters, such as DeepSpeed's
    before = checkpoint['meta'].get(NAMES)
    if before is not None:
        pairs = zip_longest(before, names_in_optimizers(runner), fillvalue='')
        differ = [name for pair in pairs if pair[0] != pair[1] for name in pair if name]
    else:  # of a run without CheckHook
        keys = state_dict_of(checkpoint).keys() ^ unwrapped(runner.model).state_dict().keys()
        differ = [key for key in keys if not is_no_weight(key)]
    what = "cannot be resumed, because its optimizer's state is of other parameters, or of the same in another order"
    _refuse(path, f'{what} (see "{differ[0]}"); resume with the model and paramwise_cfg of that run, or else' if differ else '')
    _name_settings(runner, checkpoint, path)


def _name_settings(runner: Runner, checkpoint: dict[str, Any], path: str) -> None:
    """Torch and mmengine take the old settings of parameter groups and schedulers, whatever the config says."""
    whole = checkpoint['optimizer']
    states = [each for each in (whole, *whole.values()) if isinstance(each, dict) and 'param_groups' in each]  # several have one each
    schedulers = (runner.param_schedulers or (), checkpoint.get('param_schedulers') or ())
    new, old = (sum(each.values(), []) if isinstance(each, dict) else list(each) for each in schedulers)
    new = [vars(each) for each in new if not isinstance(each, dict)]  # in a FlexibleRunner they are configs yet
    new = [group for optimizer in optimizers_of(runner) for group in optimizer.param_groups] + new
    old = [group for each in states for group in each['param_groups']] + old
    changed: dict[str, str] = {}
    for a, b in zip(map(_settings, new), map(_settings, old), strict=False):
        for key in a.keys() & b.keys():
            if a[key] != b[key]:
                changed.setdefault(key, f'{key}={b[key]} and not {a[key]}')
    if changed:
        runner.logger.warning(
            f'{path}: a resumed run goes on with the settings it was written with, and not with those of the config: '
            f'{", ".join(changed.values())}. For new settings start from its weights, with load_from instead of resume.'
        )


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Of a parameter group or a scheduler what a config sets: numbers, and lists of them, that do not change in a training."""
    fixed = {key: values.get(f'initial_{key}', value) for key, value in values.items() if not key.startswith(('_', 'initial_'))}
    return {key: value for key, value in fixed.items() if isinstance(value, int | float | tuple | list | dict) and key not in CHANGING}
