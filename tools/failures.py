"""The last line of a tool that failed: what failed, in which file or option, and where the traceback is."""

import gc
import os
import shlex
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config

from orepa_mm.errors import OREPAError

UNEXPECTED, USER, INTERRUPTED = 1, 2, 130
LONGEST = 500  # characters of a message that a line shows; the log has all of it
NESTED = 'Traceback (most recent call last):'


def report(error: BaseException) -> int:
    """Print one line about ``error`` on the standard error, and give the exit status.

    An :class:`.OREPAError` says what to do about it. The traceback of everything else goes into a file that the line names. What the line
    blames is read off the traceback: the setting that was being built, or the config, checkpoint or picture that was being read.

    Returns:
        2 for what lies in the user's files, options or machine, 1 for the unexpected, 130 for an interruption.
    """
    if isinstance(error, KeyboardInterrupt):
        _print_last('interrupted')
        return INTERRUPTED
    frames = [frame for each in _chain(error) for frame, _ in traceback.walk_tb(each.__traceback__)]  # the innermost come last
    known = isinstance(error, OREPAError)
    try:
        blamed = _blamed(frames, known)
        concerned = blamed or _last_file(frames)
    except Exception:  # values in frames may be anything, and what was raised must not be hidden
        blamed = concerned = None
    message = _joined(blamed, _message(error)) if known else f'{_joined(concerned, _message(error))} ({_write_log(error)})'
    frames.clear()
    _release(error)
    _print_last(message)
    return USER if known or blamed or isinstance(error, OSError | MemoryError | torch.OutOfMemoryError) else UNEXPECTED


def _release(error: BaseException) -> None:
    """Let go of what the error kept alive; objects that were only half built complain as they go, which must not come last."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        for each in list(_chain(error)):
            each.__traceback__ = None
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _print_last(message: str) -> None:
    text = ' '.join(message.split())
    text = text if len(text) <= 2 * LONGEST else f'{text[:LONGEST]} ... {text[-LONGEST:]}'
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads it any more; the interpreter would say so at its end, behind the last line
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print('error: ' + ''.join(c if c.isprintable() else '?' for c in text), file=sys.stderr, flush=True)


def _joined(blamed: str | None, message: str) -> str:
    return message if blamed is None or blamed in message else f'{blamed}: {message}'


def _message(error: BaseException) -> str:
    """One line for an error, without the tracebacks that other processes put into their messages."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: lower batch_size of the dataloader, or the size of the pictures"
    if isinstance(error, MemoryError):
        return "the machine's memory is full: lower batch_size and num_workers of the dataloaders"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else f'file {error.filename}'
        return f'{name}: {error.strerror}'
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if NESTED in text:
        return _last_exception(text)
    text = ' '.join(text.split())
    if isinstance(error, OREPAError):
        return text
    if not text:  # as of an assertion: then its source says most
        last = traceback.extract_tb(error.__traceback__)[-1:]
        text = f'{last[0].line} in {last[0].filename}, line {last[0].lineno}' if last else ''
    return f'{type(error).__name__}: {text[:LONGEST]}{"..." * (len(text) > LONGEST)}'


def _last_exception(text: str) -> str:
    """The exception at the end of a formatted traceback, which follows the last indented line."""
    lines = text.rstrip().splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith('  ') or NESTED in line)
    return ' '.join(' '.join(lines[last + 1 :]).split())[:LONGEST] or ' '.join(text.split())[-LONGEST:]


def _write_log(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile('w', prefix='orepa_mm-', suffix='.log', delete=False, errors='backslashreplace') as log:
            print(f'$ {shlex.join(sys.argv)}', file=log)
            traceback.print_exception(error, file=log)
    except OSError as failed:
        return f'its traceback cannot be written: {failed.strerror}'
    return f'traceback in {log.name}'


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause's cause and so on."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _blamed(frames: list[FrameType], known: bool) -> str | None:
    """What the user gave to the innermost of the functions that read or build what users give.

    Args:
        frames: Those the error came through, the innermost last.
        known: Whether the error itself says what is wrong where it is raised.
    """
    users = [frame for frame in frames if frame.f_globals.get('__name__') != 'mmengine.config.config']  # which may hold half a config
    cfg = next((value for frame in users for value in frame.f_locals.values() if isinstance(value, Config)), None)
    config = _shown(cfg.filename) if cfg and cfg.filename else None
    found = (_witness(frame, cfg, config) for frame in reversed(frames))
    blamed = next((each for each in found if each), None)
    last = frames[-1]
    if (
        not known
        and blamed is None
        and (last.f_globals.get('__name__') == 'mmengine.runner.runner' or any(v is cfg for v in last.f_locals.values()))
    ):
        return config  # the runner, or what had the config in hand, could not go on with what it says
    return blamed


def _witness(frame: FrameType, cfg: Config | None, config: str | None) -> str | None:
    """What a function was given: by the config ``cfg`` in the file ``config``, or by name."""
    match frame.f_globals.get('__name__'), frame.f_code.co_name, frame.f_locals:
        case 'mmengine.config.config', 'fromfile' | '_file2dict', {'filename': path} if os.path.exists(path):  # else who named it
            return _shown(path)
        case 'mmengine.config.config', _, _:  # something was asked for that the config has not
            return config
        case 'mmengine.runner.runner' | 'mmengine.runner.checkpoint', _, {'filename': str(path)}:
            return path
        case 'mmcv.transforms.base', '__call__', {'results': {'img_path': path}}:
            return str(path)
        case 'mmengine.registry.build_functions', 'build_from_cfg', {'cfg': dict(node)}:
            return ': '.join(filter(None, (config, _setting(cfg, node))))
        case 'mmengine.registry.build_functions', 'build_from_cfg', _:
            return config
        case 'mmengine.optim.optimizer.default_constructor', '__call__', {'optimizer_cfg': dict(node)}:
            return ': '.join(filter(None, (config, _setting(cfg, node))))
        case 'mmengine.runner.runner', name, _ if name in ('__init__', 'from_cfg', 'setup_env') or name.startswith('build_'):
            return config
    return None


def _setting(cfg: Config | None, node: dict) -> str:
    """Where in a config a dict is, such as ``model.backbone (type='OREPAResNet')``; what is built may have been completed first."""
    name = getattr(node.get('type'), '__name__', node.get('type'))
    alike = [(path, value) for path, value in _dicts(cfg, '') if value.get('type') == node.get('type')] if cfg else []
    equal = [path for path, value in alike if value == node]  # those to validate and to test on often are
    where = equal[0] if equal else alike[0][0] if len(alike) == 1 else ''
    return f'{where} (type={name!r})' if where else f'type={name!r}'


def _dicts(node: Any, path: str) -> Iterator[tuple[str, dict]]:
    if isinstance(node, dict):
        yield path, node
    if isinstance(node, dict | Config):
        for key, value in node.items():
            yield from _dicts(value, f'{path}.{key}' if path else str(key))
    for index, value in enumerate(node if isinstance(node, list | tuple) else ()):
        yield from _dicts(value, f'{path}[{index}]')


def _last_file(frames: list[FrameType]) -> str | None:
    """The file that was dealt with last, where nothing says that it is to blame."""
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            for item in vars(value).values() if isinstance(value, Namespace) else (value,):
                if isinstance(item, Config) and item.filename:
                    return _shown(item.filename)
                if isinstance(item, Path) and item.is_file():
                    return str(item)
    return None


def _shown(path: str | Path) -> str:
    """Relative where the file lies below the current folder."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else str(path)
