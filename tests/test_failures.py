"""The last line of a tool that failed."""

import errno
import sys
import tempfile
from pathlib import Path

import failures
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry

from orepa_mm.errors import LayerError, UsageError

PARTS = Registry('parts')


@PARTS.register_module()
class Part:
    def __init__(self, size: int) -> None:
        if size < 1:
            raise LayerError(f'size={size} is too small')


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Exit status and last line of what a function raises, and the log where there is one."""
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['tool.py', 'a b'])

    def get(function) -> tuple[int, str, str]:
        try:
            function()
        except BaseException as error:
            status = failures.report(error)
        lines = capsys.readouterr().err.splitlines()
        logs = list(tmp_path.glob('*.log'))
        assert len(lines) == 1 and all(str(log) in lines[0] for log in logs)
        return status, lines[0], ''.join(log.read_text() for log in logs)

    return get


def fail(error: BaseException) -> None:
    raise error


def test_what_is_raised_on_purpose_says_all(report):
    assert report(lambda: fail(UsageError('do this'))) == (2, 'error: do this', '')


def test_the_unexpected_goes_into_a_log(report):
    status, line, log = report(lambda: fail(RuntimeError('a\n  b')))
    assert status == 1 and line.startswith('error: RuntimeError: a b (traceback in ')
    assert log.startswith("$ tool.py 'a b'\nTraceback") and 'test_failures.py' in log


def test_an_interruption_is_none(report):
    assert report(lambda: fail(KeyboardInterrupt())) == (130, 'error: interrupted', '')


def test_files_of_the_system(report, tmp_path):
    status, line, _ = report(lambda: (tmp_path / 'absent').read_text())
    assert status == 2 and line.startswith(f'error: {tmp_path}/absent: No such file or directory (traceback in ')


def test_errors_of_workers_are_one_line(report):
    """They come with a traceback in their message."""
    text = (
        'Caught FileNotFoundError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n'
        '  File "fetch.py", line 54, in fetch\n    data = [self.dataset[i] for i in batch]\n            ~~~~~^^^\n'
        "FileNotFoundError: [Errno 2] No such file or directory:\n'x.jpg'\n"
    )
    status, line, log = report(lambda: fail(FileNotFoundError(text)))
    assert status == 2 and line.startswith("error: FileNotFoundError: [Errno 2] No such file or directory: 'x.jpg' (traceback in ")
    assert 'fetch.py' in log


def test_an_assertion_without_a_message_shows_its_source(report):
    assert 'error: AssertionError: raise error in ' in report(lambda: fail(AssertionError()))[1]


def test_what_a_terminal_would_obey_is_not_printed(report):
    assert '?[2J' in report(lambda: fail(UsageError('\x1b[2J\r\nname')))[1]


def test_long_messages_are_cut(report):
    _, line, log = report(lambda: fail(RuntimeError('x' * 10**6)))
    assert len(line) < 1000 and 'x' * 10**6 in log


def test_a_log_that_cannot_be_written(report, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', full)
    status, line, _ = report(lambda: fail(RuntimeError('x')))
    assert (status, line) == (1, 'error: RuntimeError: x (its traceback cannot be written: No space left on device)')


@pytest.fixture
def cfg(tmp_path) -> Config:
    (tmp_path / 'config.py').write_text(
        "model = dict(layers=[dict(type='Part', size=1), dict(type='Part', size=0)], other=dict(type='Prat'))"
    )
    return Config.fromfile(tmp_path / 'config.py')


@pytest.mark.parametrize(
    ('node', 'words'),
    [
        ('layers.1', ("model.layers[1] (type='Part'): size=0 is too small",)),
        ('other', ("model.other (type='Prat'): KeyError: Prat is not in the ",)),
        ('layers.0.size', ('config.py',)),
    ],
)
def test_settings_that_cannot_be_built_are_named(node, words, cfg, report):
    def main(cfg: Config) -> None:
        part = cfg.model
        for key in node.split('.'):
            part = part[int(key)] if key.isdigit() else part[key]
        PARTS.build(part)

    status, line, _ = report(lambda: main(cfg))
    assert status == 2 and 'config.py: ' in line and all(word in line for word in words), line


def test_what_is_said_about_a_config_is_not_said_twice(cfg, report):
    def main(cfg: Config) -> None:
        raise UsageError('--amp: needs a GPU.')

    assert report(lambda: main(cfg)) == (2, 'error: --amp: needs a GPU.', '')


def test_a_config_that_cannot_be_worked_with(cfg, report):
    def main(cfg: Config) -> None:
        raise TypeError('no number')

    status, line, _ = report(lambda: main(cfg))
    assert status == 2 and 'config.py: TypeError: no number (traceback in ' in line


def test_a_setting_that_was_completed_before_it_is_built(cfg, report):
    def main(cfg: Config) -> None:
        PARTS.build(ConfigDict(cfg.model.other, extra=1))

    assert "config.py: model.other (type='Prat')" in report(lambda: main(cfg))[1]


def test_a_setting_that_is_missing(cfg, report):
    def main(cfg: Config) -> None:
        print(cfg.model.backbone.depth)

    status, line, _ = report(lambda: main(cfg))
    assert status == 2 and 'config.py: AttributeError' in line and 'backbone' in line


def test_the_innermost_config_file_is_named(report, tmp_path):
    (tmp_path / 'base.py').write_text('1 / 0')
    (tmp_path / 'config.py').write_text("_base_ = './base.py'")
    status, line, _ = report(lambda: Config.fromfile(tmp_path / 'config.py'))
    assert status == 2 and 'base.py: ZeroDivisionError' in line


def test_the_picture_a_pipeline_failed_on(report, tmp_path):
    from mmcv.transforms import LoadImageFromFile

    (tmp_path / 'x.jpg').write_text('hello')
    status, line, _ = report(lambda: LoadImageFromFile()(dict(img_path=str(tmp_path / 'x.jpg'))))
    assert status == 2 and f'{tmp_path}/x.jpg' in line


def test_the_checkpoint_that_was_read(report, tmp_path):
    from mmengine.runner.checkpoint import load_checkpoint
    from torch import nn

    from orepa_mm.checkpoints.loaders import use_safe_loaders

    use_safe_loaders()
    status, line, _ = report(lambda: load_checkpoint(nn.Linear(1, 1), 'nothing://x.pth'))
    assert status == 2 and 'nothing://x.pth: ' in line


def test_a_file_at_hand_is_named_but_not_blamed(report, tmp_path):
    def convert(path: Path) -> None:
        raise RuntimeError('no idea')

    (tmp_path / 'x.txt').write_text('x')
    status, line, _ = report(lambda: convert(tmp_path / 'x.txt'))
    assert status == 1 and line.startswith(f'error: {tmp_path}/x.txt: RuntimeError: no idea')


def test_half_built_objects_do_not_have_the_last_word(report, capsys):
    class Half:
        def __init__(self) -> None:
            raise RuntimeError('x')

        def __del__(self) -> None:
            raise AttributeError('never set')

    assert report(Half)[1].startswith('error: RuntimeError: x')
    assert not capsys.readouterr().err


def test_causes_that_go_round(report):
    error = RuntimeError('x')
    error.__cause__ = error
    assert report(lambda: fail(error))[0] == 1
