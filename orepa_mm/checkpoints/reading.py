"""Reading checkpoints without running code from them."""

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..torch_versions import SAFE_GLOBALS
from . import restricted_pickle
from .restricted_pickle import harmless

TORCH, SAFETENSORS = 'torch', 'safetensors'
# What torch and pickle stumble over a broken file with.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
PLACES = ('state_dict', 'model', 'model_state_dict')


def is_local(path: str) -> bool:
    """Whether ``path`` is a file name and not a URL or a ``torchvision://`` model name."""
    return '://' not in path


def read_checkpoint(path: str | Path, map_location: str | torch.device | None = 'cpu', file: BinaryIO | None = None) -> dict[str, Any]:
    """Load a checkpoint without running code from it.

    Args:
        path: A local file, of torch or of safetensors.
        map_location: As for ``torch.load``.
        file: What ``path`` holds, where it is no local file.

    Returns:
        What the file holds. Weights that stand elsewhere than mmengine's loaders look for them are in its ``state_dict``:
        see :func:`state_dict_of`.

    Raises:
        CheckpointError: When the file does not exist, is cut short, is no checkpoint, or holds more than weights and log numbers.
    """
    if file is None and not Path(path).is_file():
        published = " The authors' OREPA weights: docs/architectures.md#published-checkpoints." if 'orepa-' in str(path) else ''
        raise CheckpointError(f'{path}: no such checkpoint file; check the path in the config or on the command line.{published}')
    if _check_kind(path if file is None else file, path) == SAFETENSORS:
        checkpoint = _read_safetensors(path, file)
    else:
        _check_sums(path if file is None else file, path)
        checkpoint = _read(path, map_location, file)
    state = _weights_in(checkpoint) if isinstance(checkpoint, dict) else None
    unnamed = [key for key in state if not isinstance(key, str)] if isinstance(state, dict) else []
    if unnamed:
        raise CheckpointError(f'{path}: holds keys that are no names of weights ({unnamed[0]!r}); give the state dict of a model.')
    weights = state_dict_of(checkpoint) if isinstance(checkpoint, dict) else {}
    if not weights:
        held = f' ({", ".join(map(str, list(checkpoint)[:5]))})' if isinstance(checkpoint, dict) else ''
        raise CheckpointError(f'{path}: holds no weights{held}; a checkpoint is a dict with a "state_dict", or a state dict itself.')
    empty = [key for key, value in weights.items() if value.is_meta]
    if empty:
        raise CheckpointError(f'{path}: holds names without numbers ({empty[0]} is on the meta device); save it from a model with weights.')
    renamed = weights.keys() - {key.removeprefix('module.') for key in state}  # mmengine takes that away by itself
    if renamed or state is not checkpoint.get('state_dict', checkpoint):
        return dict({} if state is checkpoint else checkpoint, state_dict=weights)
    return checkpoint


def _read(path: str | Path, map_location: str | torch.device | None, file: BinaryIO | None) -> Any:
    try:
        if SAFE_GLOBALS:
            # What somebody has allowed already is theirs, and must still be there when the context of ours ends.
            allowed = torch.serialization.get_safe_globals()
            theirs = {each[1] if isinstance(each, tuple) else f'{each.__module__}.{each.__qualname__}' for each in allowed}
            with torch.serialization.safe_globals([(each, name) for name, each in harmless().items() if name not in theirs]):
                return torch.load(path if file is None else file, map_location=map_location, weights_only=True)
        whole = Path(path).read_bytes() if file is None else file.read()
        if b'constants.pkl' in whole:  # the name by which torch.load tells a program from weights, and runs it
            raise pickle.UnpicklingError('GLOBAL TorchScript')
        return torch.load(io.BytesIO(whole), map_location=map_location, weights_only=False, pickle_module=restricted_pickle)
    except pickle.UnpicklingError as error:
        held = re.search(r"GLOBAL (\S+)|<class '([^']+)'>", str(error))
        if held:
            raise CheckpointError(
                f'{path}: refused, because it holds more than weights ({held[1] or held[2]}), and would run code when loaded. '
                'Save it again as a plain dict of tensors, from a source you trust.'
            ) from None
        reason = str(error).rpartition('WeightsUnpickler error:')[2].split('\n')[0].strip()
        raise CheckpointError(f'{path}: not a PyTorch checkpoint, or damaged ({reason}); download or copy it again.') from None
    except FAULTS as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f'{path}: cut short or damaged ({first}); download or copy it again.') from None


def _read_safetensors(path: str | Path, file: BinaryIO | None) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise CheckpointError(f'{path}: is of safetensors; reading it takes `pip install safetensors`.') from None
    try:
        return load(Path(path).read_bytes() if file is None else file.read())
    except SafetensorError as error:
        raise CheckpointError(f'{path}: cut short or damaged ({error}); download or copy it again.') from None


def _check_kind(file: str | Path | BinaryIO, path: str | Path) -> str:
    """Which of the formats that can be read; tell what often lies in their place from files that are damaged or hostile."""
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
    if start[8:10] == b'{"' and int.from_bytes(start[:8], 'little') < 2**32:  # the length of a header in JSON
        return SAFETENSORS
    if start and not start.startswith((b'PK', b'\x80')):  # a zip archive, or the pickle that torch wrote before 1.6
        raise CheckpointError(f'{path}: not a PyTorch checkpoint, it begins with {start[:12]!r}; download or copy it again.')
    return TORCH


def _check_sums(file: str | Path | BinaryIO, path: str | Path) -> None:
    """Compare the checksums in the file, which torch writes and does not look at."""
    try:
        with zipfile.ZipFile(file) as archive:
            # Without set_crc32_options torch writes zeros in their place.
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except zipfile.BadZipFile as error:
        if zipfile.is_zipfile(file):
            raise CheckpointError(f'{path}: cut short or damaged ({error}); download or copy it again.') from None
        damaged = None  # torch's format before 1.6 is no archive
    finally:
        if not isinstance(file, str | Path):
            file.seek(0)
    if damaged is not None:
        raise CheckpointError(f'{path}: damaged, the checksum of {damaged} is wrong; download or copy it again.')


def under(path: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the module at ``path`` of a model, '' for the model itself, by the module's own names."""
    prefix = f'{path}.' if path else ''
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _weights_in(checkpoint: dict[str, Any]) -> Any:
    return next((checkpoint[key] for key in PLACES if isinstance(checkpoint.get(key), dict)), checkpoint.get('state_dict', checkpoint))


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint, by the names that the model itself has for them.

    They are its ``state_dict`` (mmengine, Lightning), its ``model`` (torchvision's reference scripts, timm, DETR), or all of it. Names
    lose what wrappers put before them: ``module.`` where all have it (DDP, averaged models), ``_orig_mod.`` (``torch.compile``).
    """
    state = _weights_in(checkpoint)
    if not isinstance(state, dict):
        return {}
    state = {k.replace('_orig_mod.', ''): v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    averaged = {key: value for key, value in state.items() if key not in ('n_averaged', 'steps')}  # torch's and mmengine's counters
    while averaged and all(key.startswith('module.') for key in averaged):
        state = averaged = {key.removeprefix('module.'): value for key, value in averaged.items()}
    return state
