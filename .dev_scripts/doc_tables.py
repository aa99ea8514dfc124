#!/usr/bin/env python3
"""Put a table into a page of the docs, where it stands between two comment lines with its name.

python tools/benchmark.py && python .dev_scripts/doc_tables.py docs/speed.md standard benchmarks/standard_float32_cpu.md
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
from common import UsageError, run  # noqa: E402

from orepa_mm.files import check_writable, replacing  # noqa: E402


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--write MD``, of the scripts that compute a table of a page."""
    parser.add_argument('--write', type=Path, metavar='MD', help='put the table between the markers of this file')


def markdown(rows: Iterable[Iterable[str]]) -> str:
    """A table of rows of which the first is its head; all columns but the first are numbers."""
    head, *rest = (list(row) for row in rows)
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---', *['---:'] * (len(head) - 1)], *rest))


def insert(text: str, name: str, table: str) -> str:
    """``text`` with what stands between the two markers of ``name`` replaced by ``table``.

    Raises:
        UsageError: When the markers are missing.
    """
    begin, end = (f'<!-- {name}: {place} -->' for place in ('begin', 'end'))
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UsageError(f'the file lacks the lines {begin} and {end} that the table goes between.')
    return f'{before}{begin}\n\n{table}\n\n{end}{after}'


def check(path: Path, name: str) -> None:
    """Raise as :func:`write` would, before the table is computed."""
    if not path.is_file():
        raise UsageError(f'{path}: no such file.')
    insert(path.read_text(), name, '')
    check_writable(path)


def write(path: Path, name: str, table: str) -> None:
    """Put ``table`` into the file at ``path``.

    Raises:
        UsageError: When the file does not exist or has no place for it.
    """
    check(path, name)
    text = insert(path.read_text(), name, table)
    with replacing(path) as partial:
        partial.write_text(text)
    print(f'wrote {path}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('page', type=Path, metavar='MD', help='page of the docs')
    parser.add_argument('name', help='name of the table')
    parser.add_argument('table', type=Path, help='file with the table')
    args = parser.parse_args()
    if not args.table.is_file():
        raise UsageError(f'{args.table}: no such file.')
    write(args.page, args.name, args.table.read_text().rstrip())


if __name__ == '__main__':
    run(main)
