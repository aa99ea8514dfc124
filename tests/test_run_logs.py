"""Logs of runs read, joined and compared: tools/run_logs.py, tools/analysis_tools/compare_runs.py."""

import json
import math
from pathlib import Path

import compare_runs
import pytest
from conftest import done, refused
from run_logs import read_run, read_runs

from orepa_mm.errors import UsageError


def log(folder: Path, start: str, *rows: dict, tail: str = '') -> None:
    path = folder / start / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)


def step(iteration: int, loss: float, **more) -> dict:
    return dict(lr=0.1, loss=loss, time=iteration / 100, iter=iteration, step=iteration, epoch=1 + iteration // 10) | more


def test_a_resumed_run_is_one(tmp_path):
    log(tmp_path, '20260101_000000', step(5, 3.0), dict(mIoU=50.0, time=1.0, step=1), step(15, 2.0), step(20, 9.0), tail='{"loss": 1')
    log(tmp_path, '20260101_010000', step(15, 1.5), step(20, 1.0), dict(mIoU=40.0, classwise=[1, 2], time=1.0, step=2))
    run = read_run(tmp_path)
    assert run.curve('loss') == ([5, 15, 20], [3.0, 1.5, 1.0]) and run.curve('mIoU') == ([1, 2], [50.0, 40.0])
    assert run.metrics() == ['mIoU'] and (run.last('mIoU'), run.best('mIoU')) == (40.0, 50.0)
    assert run.seconds == 0.15 and run.memory is None and run.by_epoch and run.name == tmp_path.name
    assert read_run(tmp_path / '20260101_000000').curve('loss')[1] == [3.0, 2.0, 9.0]


def test_a_run_that_began_anew_takes_the_place_of_all(tmp_path):
    log(tmp_path, '20260101_000000', step(5, 3.0), dict(mIoU=50.0, step=1), step(15, 2.0))
    log(tmp_path, '20260101_010000', step(5, 1.5, memory=700), step(6, math.nan, memory=900))
    run = read_run(tmp_path)
    assert run.curve('loss')[0] == [5, 6] and run.metrics() == [] and run.best('mIoU') is None and run.memory == 900
    assert run.best('loss') == 1.5


def test_the_best_loss_is_the_smallest_and_what_was_not_measured_is_no_metric(tmp_path):
    log(tmp_path, 'a', dict(val_loss=2.0, score=2.0, none=-1, step=1), dict(val_loss=3.0, score=3.0, none=-1, step=2))
    run = read_run(tmp_path)
    assert run.metrics() == ['val_loss', 'score'] and (run.best('val_loss'), run.best('score')) == (2.0, 3.0)


def test_runs_are_told_apart_by_their_folders(tmp_path):
    for name in ('a/run', 'b/run', 'other'):
        log(tmp_path / name, 'x', step(1, 1.0))
    assert [run.name for run in read_runs([tmp_path / 'a/run', tmp_path / 'b/run', tmp_path / 'other'])] == ['a/run', 'b/run', 'other']
    with pytest.raises(UsageError, match='given twice'):
        read_runs([tmp_path / 'other', tmp_path / 'other'])


def test_bad_logs(tmp_path):
    log(tmp_path / 'empty', 'a')
    log(tmp_path / 'bad', 'a', dict(loss=1.0), step(1, 1.0))
    (tmp_path / 'bare').mkdir()
    for name, message in dict(
        none='none: no such folder', bare='no log of a run', empty='nothing was logged yet', bad='line 1 is no row'
    ).items():
        with pytest.raises(UsageError, match=message):
            read_run(tmp_path / name)


def test_the_tool(tools, tmp_path):
    for name, shift in (('one', 0.0), ('two', 0.5)):
        log(tmp_path / name, 'x', *(step(i, 1 / i + shift) for i in range(1, 9)), dict(mIoU=60 + shift, aAcc=80.0, step=1))
    out = tmp_path / 'runs.png'
    folders = (tmp_path / 'one', tmp_path / 'two')
    done(tools.run('tools/analysis_tools/compare_runs', *folders, '--out', out))
    assert out.read_bytes().startswith(b'\x89PNG')
    out.unlink()
    result = tools.run('tools/analysis_tools/compare_runs', *folders, '--out', out, '--metrics', 'mAP')
    refused(result, '--metrics mAP: no run has it; there are mIoU, aAcc.')
    assert not out.exists()


def test_the_table_has_a_column_for_each_run(tmp_path):
    log(tmp_path / 'one', 'x', step(2, 0.25), dict(mIoU=60.5, step=1), dict(mIoU=60.25, step=2))
    log(tmp_path / 'two', 'x', step(4, 0.5, memory=512))
    cells = {
        line[:22].strip(): line[22:].split()
        for line in compare_runs.table(read_runs([tmp_path / 'one', tmp_path / 'two']), ['mIoU']).splitlines()
    }
    assert cells == {
        '': ['one', 'two'],
        'steps': ['2', '4'],
        'loss, last': ['0.25', '0.5'],
        'mIoU, last': ['60.25', '-'],
        'mIoU, best': ['60.5', '-'],
        'seconds a step, median': ['0.020', '0.040'],
        'GPU memory, MB': ['-', '512'],
    }
