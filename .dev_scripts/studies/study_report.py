"""What a study found: means and paired differences with their intervals, as a table and pictures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from runs import metric_of
from scipy import stats
from study import FIRST_RATE_SEED, Study, chosen_rates

from orepa_mm.files import replacing

LEVEL = 0.95
HEADER = ('method', 'learning rate', 'runs', 'mean', 'sd', 'difference', '95 % interval', 's a run', 'MiB', 'remarks')


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it, in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """What is known of a method.

    Args:
        method: Its name.
        rate: Its learning rate; None where none came through.
        values: The metric of each seed whose run did not fail.
        differences: To the baseline's with the same seed, where both are there.
        seconds: Of each training that was not interrupted, by :func:`seconds_of`.
        memory: Peak memory of each training process in MiB.
        remarks: What to know about the figures, such as runs that failed.
    """

    method: str
    rate: float | None
    values: dict[int, float]
    differences: dict[int, float]
    seconds: list[float]
    memory: list[float]
    remarks: list[str]


def seconds_of(record: dict[str, Any]) -> float:
    """How long a training took: on a GPU by the clock; else by the processor, which other work on the machine hardly changes."""
    return record['seconds'] if record['gpu_memory_mib'] is not None else record['cpu_seconds']


def interval_of(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of a mean of independent differences (n - 1 degrees of freedom).

    Raises:
        ValueError: For fewer than two differences.
    """
    if len(differences) < 2:
        raise ValueError(f'an interval takes at least 2 differences, not {len(differences)}')
    mean = statistics.fmean(differences)
    half = stats.t.ppf((1 + level) / 2, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return Interval(mean, mean - half, mean + half)


def rows_of(
    records: list[dict[str, Any]], methods: Sequence[str], baseline: str, rates: dict[str, float], tried: Sequence[float], metric: str
) -> list[Row]:
    """A row for each method, in the order of ``methods``.

    Args:
        records: Of the comparison.
        methods: All of the study.
        baseline: One of them.
        rates: Their learning rates.
        tried: The learning rates they were chosen from.
        metric: What is compared.
    """
    values = {
        method: {r['seed']: metric_of(r, [metric]) for r in records if r['method'] == method and 'error' not in r} for method in methods
    }
    rows = []
    for method in methods:
        own = [record for record in records if record['method'] == method]
        whole = [record for record in own if 'error' not in record]
        failed = sorted(record['seed'] for record in own if 'error' in record)
        remarks = [f'FAILED: seed {", ".join(map(str, failed))}'] if failed else []
        if method not in rates:
            remarks.append('FAILED with every learning rate, or not tried yet')
        elif len(tried) > 1 and rates[method] in (min(tried), max(tried)):
            remarks.append('learning rate at the end of the range')
        differences = {}
        if method != baseline:
            differences = {seed: value - values[baseline][seed] for seed, value in values[method].items() if seed in values[baseline]}
        seconds = [seconds_of(record) for record in whole if not record['resumed']]
        rows.append(
            Row(method, rates.get(method), values[method], differences, seconds, [record['memory_mib'] for record in whole], remarks)
        )
    return rows


def cells(row: Row) -> tuple[str, ...]:
    values = list(row.values.values())
    digits = 2 if max(values, default=0) > 1 else 4  # per cent, or parts of one
    found = interval_of(list(row.differences.values())) if len(row.differences) > 1 else None
    return (
        row.method,
        '-' if row.rate is None else f'{row.rate:g}',
        str(len(values)),
        f'{statistics.fmean(values):.{digits}f}' if values else '-',
        f'{statistics.stdev(values):.{digits}f}' if len(values) > 1 else '-',
        f'{found.mean:+.{digits}f}' if found else '-',
        f'{found.low:+.{digits}f} to {found.high:+.{digits}f}' if found else '-',
        f'{statistics.median(row.seconds):.0f}' if row.seconds else '-',
        f'{max(row.memory):.0f}' if row.memory else '-',
        '; '.join(row.remarks),
    )


def table(rows: list[Row]) -> str:
    """The rows as markdown that is aligned for a terminal, too."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    shown = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |' for line in lines]
    return '\n'.join([shown[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *shown[1:]])


def page(rows: list[Row], records: list[dict[str, Any]]) -> str:
    """The table, and what its runs were made with."""
    used = sorted({', '.join(f'{key} {value}' for key, value in record['versions'].items()) for record in records})
    return f'{table(rows)}\n\nRun with: {"; ".join(used) or "-"}.\n'


def report(study: Study, records: dict[str, dict[str, Any]], folder: Path) -> list[Row]:
    """Write ``table.md``, ``study.png``, ``rates.png`` and ``progress.png`` into ``folder``.

    Args:
        study: The study.
        records: Of its runs, by their names, as far as they are there.
        folder: Where to write.

    Returns:
        The rows of the table.
    """
    found = [record for record in records.values() if record['method'] in study.methods]
    choosing = [record for record in found if record['phase'] == 'choose' and record['seed'] < FIRST_RATE_SEED + study.lr_seeds]
    rates = chosen_rates(study, choosing)
    compared = [
        record
        for record in found
        if record['phase'] == 'compare' and record['lr'] == rates.get(record['method']) and record['seed'] < study.seeds
    ]
    rows = rows_of(compared, list(study.methods), study.baseline, rates, study.learning_rates, study.metric)
    with replacing(folder / 'table.md') as partial:
        partial.write_text(page(rows, compared))
    draw(rows, study.baseline, study.metric, folder / 'study.png')
    draw_rates(choosing, list(study.methods), rates, study.metric, folder / 'rates.png')
    draw_progress(compared, list(study.methods), study.metric, folder / 'progress.png')
    return rows


def draw(rows: list[Row], baseline: str, metric: str, path: Path) -> None:
    """Each seed as a point, and the interval of the difference to the baseline."""
    figure = Figure(figsize=(10, 1.2 + 0.5 * len(rows)), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for position, row in enumerate(rows):
        values, differences = list(row.values.values()), list(row.differences.values())
        left.plot(values, [position] * len(values), 'o', color='C0', alpha=0.5)
        right.plot(differences, [position] * len(differences), 'o', color='C0', alpha=0.5)
        if values:
            left.plot(statistics.fmean(values), position, '|', color='C1', markersize=18)
        if len(differences) > 1:
            found = interval_of(differences)
            right.errorbar(found.mean, position, xerr=[[found.mean - found.low], [found.high - found.mean]], fmt='|', color='C1', capsize=5)
    left.set_yticks(range(len(rows)), [row.method for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set(xlabel=f'{metric}: runs and mean')
    right.set(xlabel=f'difference to {baseline}, same seed:\nruns and 95 % interval')
    right.axvline(0, color='0.6', linewidth=1)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_rates(records: list[dict[str, Any]], methods: Sequence[str], rates: dict[str, float], metric: str, path: Path) -> None:
    """The metric over the learning rate: each run as a point, a line through the means, a ring around the rate that was chosen.

    Args:
        records: Of the runs that chose.
        methods: A line for each of them.
        rates: What was chosen.
        metric: What they were judged by.
        path: Of the picture.
    """
    figure = Figure(figsize=(9, 4.5), layout='constrained')
    axes = figure.subplots()
    for number, method in enumerate(methods):
        values: dict[float, list[float]] = {}
        for record in records:
            if record['method'] == method and 'error' not in record:
                values.setdefault(record['lr'], []).append(metric_of(record, [metric]))
        means = {rate: statistics.fmean(values[rate]) for rate in sorted(values)}
        style = line_style(number)
        color = style['color']
        axes.plot(means.keys(), means.values(), label=method, **style)
        axes.plot([rate for rate in values for _ in values[rate]], [value for each in values.values() for value in each], '.', color=color)
        if rates.get(method) in means:
            axes.plot(rates[method], means[rates[method]], 'o', color=color, markersize=11, fillstyle='none')
    axes.set(xscale='log', xlabel='learning rate', ylabel=f'{metric}, validation part')
    axes.xaxis.set_major_formatter('{x:g}')
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right upper')
    save_figure(figure, path)


def draw_progress(records: list[dict[str, Any]], methods: Sequence[str], metric: str, path: Path) -> None:
    """The metric of each validation, mean over seeds, over epochs or iterations and over the time of the training."""
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for number, method in enumerate(methods):
        own = [record for record in records if record['method'] == method and 'error' not in record]
        values: dict[float, list[float]] = {}
        for row in (row for record in own for row in record['validations'] if metric in row):
            values.setdefault(row['step'], []).append(row[metric])
        steps = sorted(values)
        means = [statistics.fmean(values[step]) for step in steps]
        left.plot(steps, means, marker='.', label=method, **line_style(number))
        seconds = [seconds_of(record) for record in own if not record['resumed']]
        times = [statistics.median(seconds) * step / steps[-1] for step in steps] if seconds else []
        right.plot(times, means[: len(times)], marker='.', **line_style(number))
    left.set(xlabel='epoch or iteration', ylabel=f'{metric}, validation part, mean over seeds')
    right.set(xlabel='s of training')
    figure.legend(loc='outside right upper')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def line_style(number: int) -> dict[str, str]:
    """Of the line of a method: a colour, and another dash where ten colours are used up."""
    return dict(color=f'C{number % 10}', linestyle=('-', '--', ':')[number // 10 % 3])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture as a whole or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix.removeprefix('.'))
