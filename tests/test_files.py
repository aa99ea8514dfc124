"""Outputs are tried before anything is computed, and nothing is left of that."""

import errno
import os
import tempfile

import pytest

from orepa_mm.errors import UsageError
from orepa_mm.files import check_writable


def test_nothing_is_left(tmp_path):
    (tmp_path / 'old.json').write_text('old')
    check_writable(tmp_path / 'new.json')
    check_writable(tmp_path / 'old.json')
    check_writable(tmp_path / 'a' / 'b' / 'new.json')
    check_writable(tmp_path / 'a' / 'b', folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ['old.json'] and (tmp_path / 'old.json').read_text() == 'old'


@pytest.mark.parametrize(
    ('path', 'options', 'message'),
    [
        ('folder', {}, 'is no ordinary file'),
        ('file', dict(folder=True), 'is no folder; give another'),
        ('file', dict(force=False), 'exists; --force overwrites it'),
        ('file/x', {}, 'file is no folder'),
        ('file/x/y', dict(folder=True), 'file is no folder'),
        (os.devnull, {}, 'is no ordinary file'),
        ('loop/x', {}, 'cannot be written'),
    ],
)
def test_places_where_nothing_can_be_written(path, options, message, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UsageError, match=message):
        check_writable(tmp_path / path, **options)
    assert sorted(tmp_path.rglob('*')) == before and (tmp_path / 'file').read_text() == 'mine'


def test_a_disk_that_is_full_or_read_only(tmp_path, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', full)
    with pytest.raises(UsageError, match='x.json: cannot be written: No space left on device'):
        check_writable(tmp_path / 'a' / 'x.json')
    assert not list(tmp_path.iterdir())
