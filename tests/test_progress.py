"""Bars on the terminal: tools/progress.py."""

import io

import pytest
from progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nothing_is_written(capsys):
    assert list(track(range(3), 'drawing')) == [0, 1, 2] and capsys.readouterr() == ('', '')


@pytest.mark.parametrize('total', [None, 3])
def test_on_a_terminal_the_bar_counts_and_the_output_stays_what_it_is(total, monkeypatch):
    terminal, output = Terminal(), io.StringIO()
    monkeypatch.setattr('sys.stderr', terminal)
    monkeypatch.setattr('sys.stdout', output)
    monkeypatch.setenv('TERM', 'xterm')
    for item in track(iter([1, 2, 3]) if total else [1, 2, 3], 'drawing', total):
        print(item)
    assert 'drawing' in terminal.getvalue() and '100%' in terminal.getvalue()
    assert output.getvalue() == '1\n2\n3\n'  # a file gets what was printed, not the bar


def test_what_fails_meanwhile_is_raised(monkeypatch):
    monkeypatch.setattr('sys.stderr', Terminal())
    with pytest.raises(ZeroDivisionError):
        list(track((1 / n for n in (1, 0)), 'dividing', 2))
