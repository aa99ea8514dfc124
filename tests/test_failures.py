"""How a tool ends that failed."""

import common
import pytest
from mmengine.logging import MMLogger

from orepa_mm.errors import LayerError, UsageError


@pytest.fixture
def end(capsys):
    """Exit status and standard error of a tool whose ``main`` raises an error."""

    def get(error: BaseException) -> tuple[int, str]:
        def main() -> None:
            raise error

        with pytest.raises(SystemExit) as ended:
            common.run(main)
        return ended.value.code, capsys.readouterr().err

    return get


@pytest.mark.parametrize(
    ('error', 'status', 'line'),
    [
        (UsageError('do\n  this'), 2, 'error: do this\n'),
        (LayerError('size=0 is too small'), 2, 'error: size=0 is too small\n'),
        (FileNotFoundError(2, 'No such file or directory', 'absent.json'), 2, 'error: absent.json: No such file or directory\n'),
        (PermissionError(13, 'Permission denied', 'mine.pth'), 2, 'error: mine.pth: Permission denied\n'),
        (UsageError('\x1b[2J\r\nname'), 2, 'error: ?[2J name\n'),  # what a terminal would obey is not printed
        (KeyboardInterrupt(), 130, 'error: interrupted\n'),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, status, line, end):
    assert end(error) == (status, line)


@pytest.mark.parametrize(
    'error',
    [RuntimeError('of a head'), KeyError('Prat'), AssertionError(), OSError('truncated'), MemoryError(), ConnectionRefusedError(111, 'x')],
)
def test_everything_else_keeps_its_traceback(error):
    """It is raised as it is: nothing is printed in its place, and no frame of it is lost."""

    def main() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        common.run(main)
    assert raised.value is error and raised.traceback[-1].name == 'main'


@pytest.mark.parametrize('error', [UsageError('do this'), RuntimeError('of a head')])
def test_the_log_of_the_work_dir_has_the_traceback(error, tmp_path):
    MMLogger.get_instance('failures', log_file=str(tmp_path / 'run.log'))

    def main() -> None:
        raise error

    with pytest.raises((SystemExit, RuntimeError)):
        common.run(main)
    log = (tmp_path / 'run.log').read_text()
    assert 'Traceback (most recent call last)' in log and 'in main' in log and log.rstrip().endswith(str(error))
