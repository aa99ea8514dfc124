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
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
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


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Args:
        name: Its folder, relative to the folder of all runs.
        config: The text of its config.
        labels: What its line in ``runs.jsonl`` says beside the results: method, seed, learning rate.
    """

    name: str
    config: str
    labels: dict[str, Any]


def run_of(cfg: Config, options: dict[str, Any], name: str, *, test_on: str, **labels: Any) -> Run:
    """The run of ``cfg`` with some settings overridden.

    Args:
        cfg: Is not changed.
        options: Settings by their dotted path, as for ``--cfg-options``.
        name: As of :class:`Run`.
        test_on: ``'test'``, or ``'val'`` for a run that must not see the test part.
        labels: As of :class:`Run`.

    Raises:
        UsageError: For a setting that the config cannot have.
    """
    cfg = deepcopy(cfg)
    try:
        merge_options(cfg, options)
    except (KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise UsageError(f'{name}: cannot be set in {cfg.filename}: {error.args[0] if error.args else error}.') from None
    if test_on == 'val':
        if cfg.get('val_dataloader') is None:
            raise UsageError(f'{cfg.filename}: has no val_dataloader to test with.')
        cfg.test_dataloader, cfg.test_evaluator = deepcopy(cfg.val_dataloader), deepcopy(cfg.val_evaluator)
        cfg.test_cfg = cfg.get('test_cfg') or dict()
    return Run(name, config_text(cfg.to_dict()), dict(labels, options=options, versions=versions(cfg.default_scope)))


def config_text(settings: dict[str, Any]) -> str:
    """A config file with all of ``settings`` in it, without bases."""
    lines = (f'{key} = {pprint.pformat(value, width=140, sort_dicts=False)}\n' for key, value in settings.items() if key.isidentifier())
    return ''.join(lines)


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """The latest record of each run in a file of them, by its name. A line that was cut by an interruption is no record."""
    records = {}
    for line in path.read_text(errors='replace').splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError, KeyError, TypeError):
            record = json.loads(line)
            records[record['run']] = record
    return records


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Add one whole line to ``runs.jsonl``, also behind one that was cut.

    Raises:
        UsageError: When it cannot be written.
    """
    path = folder / RESULTS
    try:
        with path.open('a+b') as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            cut = file.read(1) not in (b'', b'\n')
            file.write(b'\n' * cut + json.dumps(record, default=str).encode() + b'\n')
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f'{path}: cannot be written: {error.strerror or error}.') from None


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """What was measured, without how long it took."""
    return {key: value for key, value in row.items() if key not in ('time', 'data_time')}


def metric_of(record: dict[str, Any], names: Iterable[str]) -> float:
    """The first of the metrics ``names`` that a test gave.

    Raises:
        UsageError: When it gave none of them.
    """
    names = tuple(names)
    for name in names:
        if name in record['metrics']:
            return record['metrics'][name]
    known = ', '.join(record['metrics']) or 'none'
    raise UsageError(f'metric {" or ".join(names)}: is not among those of {record["run"]} ({known}). What has run is kept.')


@functools.cache
def versions(scope: str) -> dict[str, str]:
    """What a run's figures depend on besides its config."""
    packages = {name: importlib.import_module(name).__version__ for name in ('mmengine', 'mmcv', scope)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return dict(orepa_mm=__version__, torch=torch.__version__, **packages, python=platform.python_version(), device=device)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def default_jobs() -> int:
    """A run for each GPU, or for each logical core."""
    return torch.cuda.device_count() or cores()


class Runs:
    """Carries out runs in ``folder``, one process of the system at a time for each of ``jobs``.

    Use as a context: on leaving it, also by an interruption (Ctrl-C, SIGTERM), no process is left behind, and the next start goes on
    from the last checkpoints.

    Args:
        folder: For everything that is written.
        jobs: Runs at a time; they share the cores, and take the GPUs in turn.
        total: Of all runs that will be asked for, for the time left.
        done: Called with each record as it comes.

    Raises:
        UsageError: When the folder cannot be written, or processes of an earlier start still run in it.
    """

    def __init__(self, folder: Path, jobs: int, total: int, done: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
        self.folder, self.jobs, self.total, self.done = folder, jobs, total, done
        self.records = read_records(folder / RESULTS)
        self._finished, self._times, self._stopping = 0, [], threading.Event()
        self._processes: set[subprocess.Popen] = set()
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)

    def __enter__(self) -> 'Runs':
        check_writable(self.folder, folder=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The processes of the runs inherit the lock, so one that outlives this process keeps a second start from its folder.
        self._lock = (self.folder / 'lock').open('w')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(f'{self.folder}: runs of it are still going on; wait for them, or end their processes.') from None
        self._before = signal.signal(signal.SIGTERM, _interrupt) if threading.current_thread() is threading.main_thread() else None
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for process in list(self._processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its dataloaders' workers; checkpoints are replaced as a whole
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        self._lock.close()

    def carry_out(self, runs: list[Run]) -> list[dict[str, Any]]:
        """The records of ``runs``, in their order. What is recorded already is not repeated; what failed before is tried again.

        Raises:
            UsageError: When one of them has been started with another config. Nothing is run then.
        """
        left = []
        for run in runs:
            path, record = self.config_path(run), self.records.get(run.name)
            failed = record is not None and 'error' in record
            if path.is_file() and path.read_text() != run.config:
                if not failed:
                    raise UsageError(f'{self.folder}: {path} has other settings than this run; give another --out.')
                shutil.rmtree(self.work_dir(run), ignore_errors=True)  # what failed with other settings is not gone on with
            if record is None or failed:
                left.append(run)
        self._finished += len(runs) - len(left)
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._in_slot, run) for run in left]
            try:
                for future in as_completed(futures):
                    self._record(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.__exit__()
                raise
        return [self.records[run.name] for run in runs]

    def work_dir(self, run: Run) -> Path:
        return self.folder / 'runs' / run.name

    def config_path(self, run: Run) -> Path:
        return self.folder / 'configs' / f'{run.name.replace("/", "--")}.py'

    def _record(self, record: dict[str, Any]) -> None:
        append_record(self.folder, record)
        self.records[record['run']] = record
        self._finished += 1
        self._times.append(record['seconds'])
        left = (self.total - self._finished) * statistics.mean(self._times) / self.jobs
        said = record.get('error') or ', '.join(f'{key} {value:.4g}' for key, value in record['metrics'].items())
        outcome = f'FAILED: {said}' if 'error' in record else said
        print(f'[{self._finished}/{self.total}] {record["run"]}: {outcome}', flush=True)
        print(f'    {record["seconds"]:.0f} s; about {_duration(left)} left', flush=True)
        self.done(record)

    def _in_slot(self, run: Run) -> dict[str, Any]:
        slot = self._slots.get()
        try:
            return self._train_and_test(run, slot)
        finally:
            self._slots.put(slot)

    def _train_and_test(self, run: Run, slot: int) -> dict[str, Any]:
        config, work_dir = self.config_path(run), self.work_dir(run)
        with replacing(config) as partial:
            partial.write_text(run.config)
        work_dir.mkdir(parents=True, exist_ok=True)
        resumed, start = (work_dir / 'last_checkpoint').is_file(), time.monotonic()
        record = dict(run=run.name, **run.labels, resumed=resumed)
        train = ['train.py', config, '--work-dir', work_dir, '--no-check-data', *(['--resume'] if resumed else [])]
        error, usage = self._process(train, work_dir / 'train.log', slot)
        seconds = time.monotonic() - start
        if error is None:
            metrics = work_dir / 'metrics.json'
            checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
            test = ['test.py', config, work_dir / checkpoint.name, '--work-dir', work_dir / 'test', '--no-check-data', '--metrics', metrics]
            error, _ = self._process(test, work_dir / 'test.log', slot)
        if error is not None:
            return dict(record, error=error, seconds=time.monotonic() - start)
        log = read_run(work_dir)
        return dict(
            record,
            metrics=without_times(json.loads(metrics.read_text())),
            validations=[without_times(row) for row in log.val],
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            memory_mib=usage.ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10),
            gpu_memory_mib=log.memory,
        )

    def _process(self, command: list[Any], log_path: Path, slot: int) -> tuple[str | None, resource.struct_rusage]:
        """The last line of a tool that failed, or None; and what its process took."""
        command = [str(TOOLS / command[0]), *map(str, command[1:])]
        environment = dict(os.environ, OMP_NUM_THREADS=str(max(1, cores() // self.jobs)))
        if torch.cuda.is_available():
            visible = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(torch.cuda.device_count())))).split(',')
            environment['CUDA_VISIBLE_DEVICES'] = visible[slot % len(visible)]
        with log_path.open('a') as log:
            print(f'$ {shlex.join(["python", *command])}', file=log, flush=True)
            if self._stopping.is_set():
                raise KeyboardInterrupt
            process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
                pass_fds=(self._lock.fileno(),),
            )
            self._processes.add(process)
            if self._stopping.is_set():
                process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._processes.discard(process)
        if self._stopping.is_set():
            raise KeyboardInterrupt
        last = log_path.read_text(errors='replace').strip().splitlines()[-1]
        error = f'{last.removeprefix("error: ")} (output: {log_path})' if process.returncode else None
        return error, usage


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min' if minutes else f'{seconds:.0f} s'
