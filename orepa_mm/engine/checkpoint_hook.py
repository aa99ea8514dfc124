"""Checkpoints that survive a kill at any moment."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..checkpoints.reading import read_checkpoint
from ..errors import CheckpointError
from ..files import replacing
from .distributed import check_together

BACKEND = 'atomic'
BESIDE = 'A run that started anew would write over the checkpoints there: give one (--resume PATH), or another work_dir.'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, with files that are whole or not there.

    A checkpoint is written beside its place, flushed to the disk and renamed. Older ones (``max_keep_ckpts``, ``save_best``) are removed
    after the new one is in its place. Before resuming, ``last_checkpoint`` is made to name the newest checkpoint that is whole, and those
    that are not are named in the log; where there are only such, the run ends. On remote storage it is the stock hook.

    Fires as the stock hook, and before a run::

        default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1))

    Args:
        kwargs: As for the stock hook.

    Raises:
        CheckpointError: When a run is to be resumed and its folder has checkpoints, but none that is whole.
    """

    backend_args: dict[str, Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir):
            self.backend_args = dict(backend=BACKEND)

    def before_run(self, runner: Runner) -> None:
        if runner._resume and not runner._load_from and self.backend_args == dict(backend=BACKEND):
            repair = partial(repair_last_checkpoint, Path(runner.work_dir), self.out_dir, runner.logger)
            check_together(repair if is_main_process() else lambda: None)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._flush()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        self._flush()

    def after_train_epoch(self, runner: Runner) -> None:
        super().after_train_epoch(runner)
        self._flush()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        if hasattr(self, 'file_backend'):  # not in a validation without training
            super().after_val_epoch(runner, metrics)
            self._flush()

    def _flush(self) -> None:
        if isinstance(self.file_backend, AtomicBackend):
            self.file_backend.flush()


@register_backend(BACKEND, force=True)
class AtomicBackend(LocalBackend):
    """Local files, replaced as a whole; what is to be removed stays until :meth:`flush`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._unwanted: dict[str, tuple[int, int]] = {}

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with replacing(filepath) as unfinished, open(unfinished, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())

    def remove(self, filepath: str | Path) -> None:
        self._unwanted[os.fspath(filepath)] = _identity(filepath)

    def flush(self) -> None:
        """Remove the files whose removal was asked for, but not what has taken the place of one since."""
        for path, identity in self._unwanted.items():
            if os.path.isfile(path) and _identity(path) == identity:
                os.remove(path)
        self._unwanted.clear()


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns  # the number of a file that is gone may be given to another


def repair_last_checkpoint(work_dir: Path, out_dir: str | Path | None, logger: logging.Logger) -> None:
    """Let ``last_checkpoint`` in ``work_dir`` name the newest checkpoint of a training that is whole.

    Raises:
        CheckpointError: When there are checkpoints, and none is.
    """
    record = work_dir / 'last_checkpoint'
    named = Path(record.read_text(errors='replace').strip()) if record.is_file() else None
    folder = work_dir if out_dir is None else Path(out_dir) / work_dir.name
    found = [path for path in folder.glob('*.pth') if path.is_file() and not path.is_symlink() and path != named]
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if named is not None and str(named) != '.':
        found.insert(0, named)
    reasons = []
    for path in found:
        try:
            usable = path.is_dir() or 'optimizer' in read_checkpoint(path)  # a folder is a strategy's, which reads it itself
            reasons.append(f'{path}: holds weights only.')
        except CheckpointError as error:
            logger.warning(f'Not resumed from: {error}')
            reasons.append(str(error))
            continue
        if usable:
            if path != named:
                logger.warning(f'Resuming from {path}, the newest checkpoint that is whole.')
                with replacing(record) as unfinished:
                    unfinished.write_text(str(path))
            return
    if found:
        raise CheckpointError(f'{work_dir}: none to resume from: {" ".join(reasons)} {BESIDE}')
    record.unlink(missing_ok=True)  # one that names nothing
