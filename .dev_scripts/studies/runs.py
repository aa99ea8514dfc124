"""Many short trainings: each is tools/train.py and tools/test.py in processes of its own, several at a time, all of it to be resumed.

A folder of runs holds ``runs.jsonl`` (a line for each run that ended), ``configs/`` (what each was started with) and ``runs/`` (its work
dir). Needs a system with file locks, such as Linux or macOS.
"""

import fcntl
import functools
import importlib
import json
import os
import platform
import pprint
import queue
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import merge_options
from mmengine.config import Config
from run_logs import read_run

from orepa_mm.errors import UsageError
from orepa_mm.files import check_writable, replacing
from orepa_mm.version import __version__

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
RESULTS = 'runs.jsonl'
TIMES = ('time', 'data_time')


@dataclass(frozen=True)
class Run:
    """One training and its test: the folder it has, the text of its config, and what its record says beside the results."""

    name: str
    config: str
    labels: dict[str, Any]


def run_of(cfg: Config, options: dict[str, Any], name: str, *, test_on: str, **labels: Any) -> Run:
    """The run of ``cfg`` with ``options`` by their dotted paths, tested on ``'test'``, or ``'val'`` where it may not see that."""
    cfg = deepcopy(cfg)
    try:
        merge_options(cfg, options)
    except (KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise UsageError(f'{name}: cannot be set in {cfg.filename}: {error.args[0] if error.args else error}.') from None
    if test_on == 'val':
        cfg.test_dataloader, cfg.test_evaluator = deepcopy(cfg.val_dataloader), deepcopy(cfg.val_evaluator)
        cfg.test_cfg = cfg.get('test_cfg') or dict()
    settings = (f'{k} = {pprint.pformat(v, width=140, sort_dicts=False)}\n' for k, v in cfg.to_dict().items() if k.isidentifier())
    return Run(name, ''.join(settings), dict(labels, options=options, versions=versions(cfg.default_scope)))


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """The latest record of each run in a file of them, by its name. A line that was cut by an interruption is no record."""
    records = {}
    for line in path.read_text(errors='replace').splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError, KeyError, TypeError):
            record = json.loads(line)
            records[record['run']] = record
    return records


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Add one whole line to ``runs.jsonl``, also behind one that was cut."""
    with (folder / RESULTS).open('a+b') as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut = file.read(1) not in (b'', b'\n')
        file.write(b'\n' * cut + json.dumps(record, default=str).encode() + b'\n')


@functools.cache
def versions(scope: str) -> dict[str, str]:
    """What a run's figures depend on besides its config."""
    packages = {name: importlib.import_module(name).__version__ for name in ('mmengine', 'mmcv', scope)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return dict(orepa_mm=__version__, torch=torch.__version__, **packages, python=platform.python_version(), device=device)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class Runs:
    """Carries out runs in ``folder``, ``jobs`` at a time, which share the cores and take the GPUs in turn.

    Use as a context: on leaving it, also by an interruption (Ctrl-C, SIGTERM), no process is left behind, and the next start goes on
    from the last checkpoints.

    Args:
        folder: For everything that is written.
        jobs: Runs at a time.
        total: Of all runs that will be asked for.
        done: Called with each record as it comes.

    Raises:
        UsageError: When the folder cannot be written, or processes of an earlier start still run in it.
    """

    def __init__(self, folder: Path, jobs: int, total: int, done: Callable[[dict[str, Any]], object] = lambda record: None) -> None:
        self.folder, self.jobs, self.total, self.done = folder, jobs, total, done
        self.records = read_records(folder / RESULTS)
        self._stopping, self._processes = threading.Event(), set()
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)

    def __enter__(self) -> 'Runs':
        check_writable(self.folder, folder=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / 'lock').open('w')  # which the runs' processes inherit
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(f'{self.folder}: runs of it are still going on; wait for them, or end their processes.') from None
        self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for process in list(self._processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its dataloaders' workers; checkpoints are replaced as a whole
        signal.signal(signal.SIGTERM, self._before)
        self._lock.close()

    def carry_out(self, runs: list[Run]) -> list[dict[str, Any]]:
        """The records of ``runs``, in their order. What is recorded already is not repeated; what failed before is tried again.

        Raises:
            UsageError: When one of them has been started with another config. Nothing is run then.
        """
        left = [run for run in runs if 'error' in self.records.get(run.name, dict(error='not run'))]
        for run in runs:
            path = self.config_path(run)
            if path.is_file() and path.read_text() != run.config:
                if run not in left or run.name not in self.records:
                    raise UsageError(f'{self.folder}: {path} has other settings than this run; give another --out.')
                shutil.rmtree(self.work_dir(run), ignore_errors=True)  # what failed with other settings is not gone on with
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._train_and_test, run) for run in left]
            try:
                for future in as_completed(futures):
                    self._record(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stopping.set()
                for process in list(self._processes):
                    process.kill()
                raise
        return [self.records[run.name] for run in runs]

    def work_dir(self, run: Run) -> Path:
        return self.folder / 'runs' / run.name

    def config_path(self, run: Run) -> Path:
        return self.folder / 'configs' / f'{run.name.replace("/", "--")}.py'

    def _record(self, record: dict[str, Any]) -> None:
        append_record(self.folder, record)
        self.records[record['run']] = record
        said = f'FAILED: {record["error"]}' if 'error' in record else ', '.join(f'{k} {v:.4g}' for k, v in record['metrics'].items())
        ended = sum('error' not in each for each in self.records.values())
        print(f'[{ended}/{self.total}] {record["run"]}: {said} ({record["seconds"]:.0f} s)', flush=True)
        self.done(record)

    def _train_and_test(self, run: Run) -> dict[str, Any]:
        slot, start = self._slots.get(), time.monotonic()
        try:
            config, work_dir = self.config_path(run), self.work_dir(run)
            with replacing(config) as partial:
                partial.write_text(run.config)
            work_dir.mkdir(parents=True, exist_ok=True)
            resumed, metrics = (work_dir / 'last_checkpoint').is_file(), work_dir / 'metrics.json'
            record = dict(run=run.name, **run.labels, resumed=resumed)
            train = ['train.py', config, '--work-dir', work_dir, '--no-check-data', *(['--resume'] if resumed else [])]
            error, usage = self._process(train, work_dir / 'train.log', slot)
            seconds = time.monotonic() - start
            if error is None:
                last = work_dir / Path((work_dir / 'last_checkpoint').read_text().strip()).name
                test = ['test.py', config, last, '--work-dir', work_dir / 'test', '--no-check-data', '--metrics', metrics]
                error, _ = self._process(test, work_dir / 'test.log', slot)
            if error is not None:
                return dict(record, error=error, seconds=time.monotonic() - start)
            if run.labels.get('phase') != 'pretrain':
                last.unlink(missing_ok=True)  # many, and large with the optimizer's states
        finally:
            self._slots.put(slot)
        log = read_run(work_dir)
        rows = [json.loads(metrics.read_text()), *log.val]
        tested, *validations = ({key: value for key, value in row.items() if key not in TIMES} for row in rows)
        return dict(
            record,
            metrics=tested,
            validations=validations,
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            memory_mib=usage.ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10),
            gpu_memory_mib=log.memory,
        )

    def _process(self, command: list[Any], log_path: Path, slot: int) -> tuple[str | None, resource.struct_rusage]:
        """The last line of a tool that failed, or None; and what its process took."""
        command = [sys.executable, '-W', 'ignore', str(TOOLS / command[0]), *map(str, command[1:])]
        here = str(Path(__file__).resolve().parent)  # for study_hooks.py
        environment = {'OMP_NUM_THREADS': str(max(1, cores() // self.jobs)), **os.environ}
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, (here, os.environ.get('PYTHONPATH'))))
        if torch.cuda.is_available():
            visible = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(torch.cuda.device_count())))).split(',')
            environment['CUDA_VISIBLE_DEVICES'] = visible[slot % len(visible)]
        if self._stopping.is_set():
            raise KeyboardInterrupt
        with log_path.open('a') as log:
            print(f'$ {shlex.join(command)}', file=log, flush=True)
            options = dict(stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=(self._lock.fileno(),))
            process = subprocess.Popen(command, start_new_session=True, **options)  # Ctrl-C reaches this process alone
            self._processes.add(process)
            if self._stopping.is_set():
                process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._processes.discard(process)
        if self._stopping.is_set():
            raise KeyboardInterrupt
        last = log_path.read_text(errors='replace').strip().splitlines()[-1]
        return f'{last.removeprefix("error: ")} (output: {log_path})' if process.returncode else None, usage
