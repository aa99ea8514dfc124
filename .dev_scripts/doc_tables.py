"""Tables in pages of the docs, where they stand between two comment lines with their names."""

from collections.abc import Iterable
from pathlib import Path

from orepa_mm.errors import UsageError
from orepa_mm.files import replacing


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


def write(path: Path, name: str, table: str) -> None:
    """Put ``table`` into the file at ``path``; errors as :func:`insert`."""
    text = insert(path.read_text(), name, table)
    with replacing(path) as partial:
        partial.write_text(text)
    print(f'wrote {path}')
