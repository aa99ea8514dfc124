"""Writing files so that a run that stops half-way leaves what was there before."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError


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
        raise UsageError(f'{path}: cannot be written: {error.strerror or error}.') from error
    finally:
        partial.unlink(missing_ok=True)


def save(value: Any, path: str | Path) -> None:
    """``torch.save`` that never leaves half a file.

    Raises:
        UsageError: As :func:`replacing`.
    """
    buffer = io.BytesIO()  # torch's own writer ends the process's exception on a full disk with one of its own
    torch.save(value, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())
