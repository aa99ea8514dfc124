"""Reading checkpoints without running code from them."""

import importlib
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError


def is_local(path: str) -> bool:
    """Whether ``path`` is a file name and not a URL or a ``torchvision://`` model name."""
    return '://' not in path


def _method_of_log_history(owner: type, name: str) -> Any:
    """What pickle's ``getattr`` is replaced with: a method of mmengine's log history and nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('mean', 'min', 'max', 'current', 'data'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner}, {name}) was not allowed')
    return getattr(owner, name)


def _allowed_globals() -> list[Any]:
    """The harmless classes in which mmengine's own training checkpoints keep their log history."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    multiarray: Any = importlib.import_module(f'numpy.{"_core" if hasattr(np, "_core") else "core"}.multiarray')
    numbers = (np.float64, np.float32, np.int64, np.int32, np.uint32, np.bool_)
    constructors = [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, *(type(np.dtype(n)) for n in numbers)]
    # numpy 1 and 2 write the same two functions under different names.
    renamed = [(getattr(multiarray, name), f'numpy.{core}.multiarray.{name}') for core in ('core', '_core')
               for name in ('_reconstruct', 'scalar')]  # fmt: skip
    allowed = [HistoryBuffer, (_method_of_log_history, 'builtins.getattr'), *constructors, *renamed]
    # What somebody has allowed already is theirs, and must still be there when the context of ours ends.
    theirs = {_name(entry) for entry in torch.serialization.get_safe_globals()}
    return [entry for entry in allowed if _name(entry) not in theirs]


def _name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'


def read_checkpoint(path: str | Path, map_location: str | torch.device | None = 'cpu', file: BinaryIO | None = None) -> dict[str, Any]:
    """Load a checkpoint without running code from it.

    Args:
        path: A local file.
        map_location: As for ``torch.load``.
        file: What ``path`` holds, where it is no local file.

    Raises:
        CheckpointError: When the file does not exist, is cut short, is no checkpoint, or holds more than weights and log numbers.
    """
    if file is None and not Path(path).is_file():
        raise CheckpointError(f'{path}: no such checkpoint file; check the path in the config or on the command line.')
    _check_kind(path if file is None else file, path)
    _check_sums(path if file is None else file, path)
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            checkpoint = torch.load(path if file is None else file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split('GLOBAL ')[-1].split(' was not')[0].split('\n')[0]
        if 'Unsupported' in str(error) or 'GLOBAL' in str(error):
            raise CheckpointError(
                f'{path}: refused, because it would run code when loaded ({reason}). '
                'Save it again as a plain dict of tensors, from a source you trust.'
            ) from None
        raise CheckpointError(f'{path}: not a PyTorch checkpoint, or damaged ({reason}); download or copy it again.') from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f'{path}: cut short or damaged ({first}); download or copy it again.') from None
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    unnamed = [key for key in state if not isinstance(key, str)] if isinstance(state, dict) else []
    if unnamed:
        raise CheckpointError(f'{path}: holds keys that are no names of weights ({unnamed[0]!r}); give the state dict of a model.')
    if not isinstance(checkpoint, dict) or not state_dict_of(checkpoint):
        raise CheckpointError(f'{path}: holds no weights; a checkpoint is a dict with a "state_dict", or a state dict itself.')
    empty = [key for key, value in state_dict_of(checkpoint).items() if value.is_meta]
    if empty:
        raise CheckpointError(f'{path}: holds names without numbers ({empty[0]} is on the meta device); save it from a model with weights.')
    return checkpoint


def _check_kind(file: str | Path | BinaryIO, path: str | Path) -> None:
    """Tell what often lies where a checkpoint should from files that are damaged or hostile."""
    if isinstance(file, str | Path):
        with open(file, 'rb') as opened:
            start = opened.read(64)
    else:
        start = file.read(64)
        file.seek(0)
    if start.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path}: is a pointer of git-LFS, not the checkpoint it stands for; fetch that with `git lfs pull`.')
    if start.lstrip().startswith(b'<'):
        raise CheckpointError(
            f'{path}: is a web page and no checkpoint: what was downloaded is a notice or asks to log in. Download the file itself.'
        )
    if start and not start.startswith((b'PK', b'\x80')):  # a zip archive, or the pickle that torch wrote before 1.6
        raise CheckpointError(f'{path}: not a PyTorch checkpoint, it begins with {start[:12]!r}; download or copy it again.')


def _check_sums(file: str | Path | BinaryIO, path: str | Path) -> None:
    """Compare the checksums in the file, which torch writes and does not look at."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        if zipfile.is_zipfile(file):
            raise CheckpointError(f'{path}: cut short or damaged ({error}); download or copy it again.') from None
        damaged = None  # torch's format before 1.6 is no archive
    finally:
        if not isinstance(file, str | Path):
            file.seek(0)
    if damaged is not None:
        raise CheckpointError(f'{path}: damaged, the checksum of {damaged} is wrong; download or copy it again.')


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint, without the ``module.`` prefix of distributed wrappers."""
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict):
        return {}
    return {key.removeprefix('module.'): value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
