"""What the command-line tools share: options, configs and one clear line for an error."""

import argparse
import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import orepa_mm  # noqa: F401  registers the layers, backbones and the hook, also where a config forgot custom_imports
from orepa_mm.engine.check_hook import CheckHook
from orepa_mm.engine.distributed import adapt_to_cpus
from orepa_mm.engine.orepa_hook import OREPAHook
from orepa_mm.errors import OREPAError, UsageError
from orepa_mm.registry import drop_own_scope, scope_of


def run(main: Callable[[], None]) -> None:
    """Run ``main``. What the user can mend ends in one line and exit status 2; everything else keeps its traceback, and status 1.

    The log of the work dir, where there is one, has the traceback of both.
    """
    try:
        main()
        sys.stdout.flush()  # a full disk or a closed pipe shows here
    except KeyboardInterrupt:
        print('error: interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _write_into_log(error)
        message = _users_fault(error)
        if message is None:
            raise
        print('error: ' + ''.join(c if c.isprintable() else '?' for c in ' '.join(message.split())), file=sys.stderr)
        sys.exit(2)
    finally:
        if torch.distributed.is_initialized():
            gc.collect()  # a wrapper that outlives its process group can abort the interpreter at exit
            torch.distributed.destroy_process_group()


def _users_fault(error: Exception) -> str | None:
    """What to say of an error of this package, or of the system about a file that it names."""
    if isinstance(error, OREPAError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f'{error.filename}: {error.strerror}'
    return None


def _write_into_log(error: Exception) -> None:
    logger = MMLogger.get_current_instance()
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, 'ended by an error', (), (type(error), error, error.__traceback__))
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def keep_freed_memory() -> None:
    """Let a training on a CPU use its memory again instead of giving it back to the system after every operation.

    The C library gives large blocks back as they are freed, and the system clears every page it hands out again: a tenth to a fifth of
    a training step. Has no effect beside another allocator, such as jemalloc.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(trim_threshold, -1)
    mallopt(mmap_max, 0)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options all MM train and test scripts have."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """The option that overrides settings of the config, of a tool that has no other of them."""
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Settings,
        help='override settings of the config: key=value pairs; lists as key="[a,b]" or key=a,b, without white space',
    )


class _Settings(DictAction):
    """mmengine's action, for which a word that is no setting is a wrong argument and not a fault."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError, RecursionError) as error:
            parser.error(f'{option_string}: these are no key=value pairs ({error})')


def merge_options(cfg: Config, options: dict) -> None:
    """``cfg.merge_from_dict``, where the names of parameters in ``custom_keys`` may have dots in them.

    ``optim_wrapper.paramwise_cfg.custom_keys.backbone.conv1.lr_mult=0.3`` sets the multiplier of ``'backbone.conv1'``.
    """
    for path, value in options.items():
        node, custom, rest = path.partition('.custom_keys.')
        key, _, setting = (rest, '', '') if isinstance(value, dict) else rest.rpartition('.')
        if custom and key:
            path, value = f'{node}.custom_keys', {key: {setting: value} if setting else value}
        cfg.merge_from_dict({path: value})


def require_torchvision() -> None:
    """Refuse a torchvision that was built for another torch, which fails anew wherever the toolboxes import it."""
    try:
        import torchvision  # noqa: F401
    except ImportError:  # there is none, and a toolbox that needs it says so
        return
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f'torchvision was built for another torch than {torch.__version__} ({error}): install both anew in one command, from one index.'
        ) from None


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, apply the common options and complete what the toolbox's own scripts complete."""
    require_torchvision()
    if not Path(args.config).is_file():
        raise UsageError(f'{args.config}: no such config file.')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        cfg = Config.fromfile(args.config)
    except RecursionError:
        raise UsageError(
            f'{args.config}: has no end: a file in its _base_ has it, or itself, as a base, or a list in it is too deep.'
        ) from None
    except (OSError, SyntaxError, UnicodeDecodeError, ConfigParsingError) as error:
        raise UsageError(f'{args.config}: {error}') from error
    try:
        merge_options(cfg, args.cfg_options or {})
    except (KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise UsageError(f'--cfg-options: cannot be set in {args.config}: {error.args[0] if error.args else error}.') from None
    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, list | tuple) or not all(isinstance(hook, dict) for hook in hooks):
        raise UsageError(f"{args.config}: custom_hooks must be a list of dicts, as in custom_hooks = [dict(type='CheckHook')].")
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    drop_own_scope(list(cfg.values()))
    cfg.default_scope = scope_of(cfg) or 'mmengine'
    if cfg.default_scope == 'mmpretrain':
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name) is not None:
                cfg[name] = ConfigDict(dict(pin_memory=True, collate_fn=dict(type='default_collate')), **cfg[name])
    return cfg


def build_runner(cfg: Config) -> Runner:
    """The stock ``Runner`` of ``cfg``, or the one its ``runner_type`` names, with the checks of ``CheckHook``."""
    changed = adapt_to_cpus(cfg) if cfg.launcher != 'none' and get_device() == 'cpu' else None
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if not any(isinstance(hook, CheckHook | OREPAHook) for hook in runner.hooks):
        runner.register_hook(CheckHook())
    if changed:
        runner.logger.warning(changed)
    return runner
