"""A bar on the terminal for what takes longer than a few seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar('Item')


def track(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar of how many are done on the standard error; nothing is written where that is no terminal.

    Args:
        items: What is gone through.
        title: Beside the bar.
        total: How many there are; default: their ``len``, and without one the bar only moves.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    # What is printed meanwhile goes above the bar; where the standard output is a file it goes there.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        yield from bar.track(items, total=total, description=title)
