"""Writing files so that a run that stops half-way leaves what was there before."""

import errno
import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # writing into an open file names none


def check_writable(path: str | Path, *, folder: bool = False, force: bool = True) -> None:
    """Try, before anything is computed, to write a file at ``path``, or one in the folder ``path``. Nothing is left or changed.

    Raises:
        UsageError: When that fails, or without ``force`` something is there.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise UsageError(f'{path}: is no {"folder" if folder else "ordinary file"}; give another name.')
    if path.exists() and not force:
        raise UsageError(f'{path}: exists; --force overwrites it.')
    parent = path if folder else path.parent
    missing = list(itertools.takewhile(lambda ancestor: not ancestor.exists(), (parent, *parent.parents)))
    above = missing[-1].parent if missing else parent
    if not above.is_dir():
        raise UsageError(f'{path}: cannot be written: {above} is no folder.')
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=parent, prefix=f'{path.name}.') as file:
            file.write(b'x')
    except OSError as error:
        raise UsageError(f'{path}: cannot be written: {error.strerror or error}.') from None
    finally:
        for made in missing:
            with suppress(OSError):  # not made, or somebody has put something there
                made.rmdir()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; it takes the place of ``path`` when the block ends without an error.

    Raises:
        UsageError: When the folder cannot be made or the file not be written, as on a full disk. What was there before is untouched.
    """
    path = Path(path)
    partial = path.with_name(path.name + '.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        concerned = [*path.parents, path, partial] if error.filename else []
        if error.errno not in FULL and not any(str(error.filename) == str(each) for each in concerned):
            raise  # of something else that the block does
        raise UsageError(f'{path}: cannot be written: {error.strerror or error}.') from error
    finally:
        with suppress(OSError):  # where there is none, or cannot be
            partial.unlink()


def save(value: Any, path: str | Path) -> None:
    """``torch.save`` that never leaves half a file.

    Raises:
        UsageError: As :func:`replacing`.
    """
    buffer = io.BytesIO()  # torch's own writer ends the process's exception on a full disk with one of its own
    torch.save(value, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())
