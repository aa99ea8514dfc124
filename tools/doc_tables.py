"""Tables in the docs that tools write: each stands between two comment lines with its name."""

from pathlib import Path

from common import UsageError
from files import replacing


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
    """Put ``table`` into the file at ``path``.

    Raises:
        UsageError: When the file does not exist or has no place for it.
    """
    if not path.is_file():
        raise UsageError(f'{path}: no such file.')
    text = insert(path.read_text(), name, table)
    with replacing(path) as partial:
        partial.write_text(text)
    print(f'wrote {path}')
