"""Runs of several processes: their start, on CPUs too, and checks that end all of them when one fails."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, init_dist
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn
from torch.distributed.constants import default_pg_timeout

from ..errors import UsageError
from ..registry import type_name

SYNCHRONISED = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers: distributed ones, and that of test-time augmentation."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner


def start_processes(cfg: Config) -> None:
    """Connect the processes of ``cfg.launcher`` before the Runner is built, which takes them as they are.

    Accelerators are started as mmengine does it. CPUs, which mmengine does not start, talk by gloo.

    Raises:
        UsageError: When processes of slurm or mpi would have to share CPUs.
    """
    if cfg.launcher == 'none':
        return
    env = cfg.get('env_cfg') or {}
    options = dict(env.get('dist_cfg') or {})
    if get_device() != 'cpu':
        if 'runner_type' not in cfg:  # the strategies of other runners start their own backends
            set_multi_processing(**(env.get('mp_cfg') or {}), distributed=True)
            init_dist(cfg.launcher, **options)
        return
    if cfg.launcher != 'pytorch':
        raise UsageError(
            f'--launcher {cfg.launcher}: works on accelerators only, and none was found; on CPUs start tools/dist_train.sh or dist_test.sh '
            'on each machine, with NNODES, NODE_RANK and MASTER_ADDR in the environment.'
        )
    timeout = options.get('timeout')
    torch.distributed.init_process_group('gloo', timeout=default_pg_timeout if timeout is None else timedelta(seconds=timeout))


def check_together(check: Callable[[], object], once_a_node: bool = False) -> None:
    """Run ``check`` in every process, or in the first of each machine; an error in one is raised in all, as none would end the others.

    Raises:
        UsageError: With the message of the process whose check failed. That process raises its own error.
    """
    found = None
    try:
        if not once_a_node or int(os.environ.get('LOCAL_RANK', 0)) == 0:
            check()
    except Exception as error:
        found = error
    messages = [message for message in all_gather_object(found and str(found)) if message is not None]
    if found is not None:
        raise found
    if messages:
        raise UsageError(messages[0])


def adapt_to_cpus(cfg: Config) -> str | None:
    """Change the config of a distributed run to what torch can do on CPUs.

    Returns:
        What changes a result, as a sentence for the log; None where nothing does.
    """
    cfg.model_wrapper_cfg = dict(
        # the other two as mmengine sets them where a config does not
        cfg.get('model_wrapper_cfg') or dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)),
        device_ids=None,
    )
    model = _without_sync(cfg.model)
    if model == cfg.model and not cfg.get('sync_bn'):
        return None
    cfg.model, cfg.sync_bn = model, None
    return (
        'The synchronised norms (SyncBN) of this config are ordinary ones in this run, as torch synchronises norms on GPUs only. Each '
        'process normalises by its own pictures of a step instead of by all: a training ends with other weights than on GPUs.'
    )


def _without_sync(node: Any) -> Any:
    """A config with ordinary batch norms for synchronised ones."""
    if isinstance(node, dict):
        return type(node)(
            {key: 'BN' if key == 'type' and type_name(value) in SYNCHRONISED else _without_sync(value) for key, value in node.items()}
        )
    return type(node)(_without_sync(item) for item in node) if type(node) in (list, tuple) else node
