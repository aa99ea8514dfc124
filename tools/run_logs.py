"""What a training logged: the scalars of mmengine's ``LocalVisBackend``, a resumed run as one."""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orepa_mm.errors import UsageError

BESIDE = ('step', 'iter', 'epoch', 'time', 'data_time')  # in a row that holds what was measured
LOWER_IS_BETTER = ('loss', 'error', 'mae', 'mse', 'rmse', 'perplexity')


@dataclass
class RunLog:
    """A run.

    Attributes:
        name: What it is called beside others.
        train: Rows of the training in the order of their ``'step'``, an iteration: loss, lr, time (seconds a step), memory (MB of a GPU).
        val: Rows of the validations in the order of their ``'step'``.
        by_epoch: Whether the steps of the validations are epochs, or iterations.
    """

    name: str
    train: list[dict]
    val: list[dict]
    by_epoch: bool

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one scalar, of the training or of the validations."""
        rows = [row for row in (*self.train, *self.val) if _is_measured(row.get(key))]
        return [row['step'] for row in rows], [row[key] for row in rows]

    def metrics(self) -> list[str]:
        """What the validations measured: single numbers, in the order they were logged."""
        return list(dict.fromkeys(key for row in self.val for key, value in row.items() if key not in BESIDE and _is_measured(value)))

    def last(self, metric: str) -> float | None:
        values = self.curve(metric)[1]
        return values[-1] if values else None

    def best(self, metric: str) -> float | None:
        """The largest value, or of a loss or an error the smallest; what is not finite does not count."""
        values = [value for value in self.curve(metric)[1] if math.isfinite(value)]
        words = metric.lower().replace('/', '_').split('_')
        return (min if set(words) & set(LOWER_IS_BETTER) else max)(values, default=None)

    @property
    def seconds(self) -> float | None:
        """Median seconds a training step, waiting for data included."""
        times = [row['time'] for row in self.train if 'time' in row]
        return statistics.median(times) if times else None

    @property
    def memory(self) -> float | None:
        """Most memory of a GPU, in MB; None for a run on a CPU."""
        return max((row['memory'] for row in self.train if 'memory' in row), default=None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_measured(value: object) -> bool:
    return _is_number(value) and value != -1  # COCO's metric where there was nothing to measure, as large objects among small ones


def read_run(work_dir: Path, name: str | None = None) -> RunLog:
    """The run in a work dir.

    Each start of a run leaves a folder there, named by its time. Of those of a run that was resumed, a later one takes the place of the
    rows from its own first step on; one that begins at the start takes the place of all.

    Args:
        work_dir: With ``<time>/vis_data/scalars.json`` in it; one such ``<time>`` folder is a run as well.
        name: Default: the folder's.

    Raises:
        UsageError: When there is no log, or one that cannot be read or is empty.
    """
    if not work_dir.is_dir():
        raise UsageError(f'{work_dir}: no such folder.')
    paths = sorted(work_dir.glob('*/vis_data/scalars.json')) or sorted(work_dir.glob('vis_data/scalars.json'))
    if not paths:
        raise UsageError(f'{work_dir}: no log of a run in it (*/vis_data/scalars.json); give the work dir of a training.')
    train: list[dict] = []
    val: list[dict] = []
    for path in paths:
        rows = read_scalars(path)
        steps = [row for row in rows if 'iter' in row]
        measured = [row for row in rows if 'iter' not in row]
        if steps and train and steps[0]['step'] <= train[0]['step']:
            train, val = [], []
        train, val = _joined(train, steps), _joined(val, measured)
    if not train and not val:
        raise UsageError(f'{work_dir}: nothing was logged yet; give the work dir of a training that got so far.')
    return RunLog(name or work_dir.resolve().name, train, val, any('epoch' in row for row in train))


def _joined(rows: list[dict], later: list[dict]) -> list[dict]:
    return [row for row in rows if row['step'] < later[0]['step']] + later if later else rows


def read_scalars(path: Path) -> list[dict]:
    """The rows of a ``scalars.json``, one JSON object a line; a last line that a killed run left half written is left out.

    Raises:
        UsageError: When the file cannot be read, or another line is none.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f'{path}: cannot be read ({error}).') from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and _is_number(row.get('step')):
            rows.append(row)
        elif number < len(lines):
            raise UsageError(f'{path}: line {number} is no row of scalars with a step; the file is damaged, or of another program.')
    return rows


def read_runs(work_dirs: Iterable[Path]) -> list[RunLog]:
    """Several runs, each named by its folder, with as many of the folders above it as tell it from the others.

    Raises:
        UsageError: As :func:`read_run`, and when a folder is given twice.
    """
    folders = [(work_dir, work_dir.resolve().parts) for work_dir in work_dirs]
    runs = []
    for index, (work_dir, parts) in enumerate(folders):
        others = [other for place, (_, other) in enumerate(folders) if place != index]
        if parts in others:
            raise UsageError(f'{work_dir}: is given twice.')
        count = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        runs.append(read_run(work_dir, '/'.join(parts[-count:])))
    return runs
