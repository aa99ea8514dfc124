"""Outputs are tried before anything is computed, and nothing is left of that."""

import errno
import os
import tempfile

import pytest
from conftest import full_disk

from orepa_mm.errors import UsageError
from orepa_mm.files import check_writable, replacing


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
    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', full_disk)
    with pytest.raises(UsageError, match='x.json: cannot be written: No space left on device'):
        check_writable(tmp_path / 'a' / 'x.json')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'error',
    [
        FileNotFoundError(errno.ENOENT, 'No such file or directory', 'input.json'),
        ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused'),
        PermissionError(errno.EACCES, 'Permission denied', '/etc/shadow'),
        OSError('image file is truncated'),
    ],
)
def test_errors_of_something_else_are_not_those_of_writing(error, tmp_path):
    with pytest.raises(OSError) as raised, replacing(tmp_path / 'x.json'):
        raise error
    assert raised.value is error and not list(tmp_path.iterdir())


def test_errors_of_writing_name_the_file(tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(UsageError, match='x.json: cannot be written: No space'), replacing(tmp_path / 'x.json') as partial:
        partial.write_text('half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(UsageError, match='file/x.json: cannot be written'), replacing(tmp_path / 'file' / 'x.json'):
        pass
    with pytest.raises(UsageError, match='folder: cannot be written'), replacing(tmp_path / 'folder') as partial:
        (tmp_path / 'folder').mkdir()
        partial.write_text('x')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder']
