"""What a study found: means and paired differences with their intervals, as a table and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from study import FIRST_RATE_SEED, Study, chosen_rates, metric_of

from orepa_mm.files import replacing

HEADER = ('method', 'learning rate', 'runs', 'mean', 'sd', 'difference', '95 % interval', 's a run', 'remarks')


def frame(study: Study, records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for each run that ended: method, seed, learning rate, the metric (none where it failed), seconds of its training.

    Seconds are of the clock on a GPU; else of the processor, which other work on the machine hardly changes.
    """
    rows = [
        dict(
            {key: record[key] for key in ('method', 'seed', 'lr')},
            value=None if 'error' in record else metric_of(study, record),
            seconds=record.get('seconds' if record.get('gpu_memory_mib') is not None else 'cpu_seconds'),
            resumed=record['resumed'],
            validations=[(row['step'], row[study.metric]) for row in record.get('validations', ()) if study.metric in row],
        )
        for record in records
    ]
    return pd.DataFrame(rows, columns=['method', 'seed', 'lr', 'value', 'seconds', 'resumed', 'validations'])


def differences(runs: pd.DataFrame, method: str, baseline: str) -> pd.Series:
    """Of the runs of a method to those of the baseline with the same seed, where both came through."""
    values = runs.pivot_table(index='seed', columns='method', values='value')
    if method == baseline or not {method, baseline} <= set(values):
        return pd.Series(dtype=float)
    return (values[method] - values[baseline]).dropna()


def interval_of(found: Sequence[float]) -> tuple[float, float]:
    """Student's interval at 95 % of the mean of paired differences, of at least two."""
    low, high = stats.ttest_1samp(list(found), 0).confidence_interval(0.95)
    return float(low), float(high)


def cells(study: Study, runs: pd.DataFrame, rates: dict[str, float], method: str) -> tuple[str, ...]:
    """A row of the table."""
    own = runs[runs.method == method]
    whole, failed = own.dropna(subset='value'), own[own.value.isna()]
    found, undisturbed = differences(runs, method, study.baseline), whole[~whole.resumed.astype(bool)]
    digits = 2 if runs.value.max() > 1 else 4  # per cent, or parts of one
    remarks = [f'FAILED: seed {", ".join(map(str, failed.seed))}'] * bool(len(failed))
    if method not in rates:
        remarks.append('FAILED with every learning rate, or not tried yet')
    elif len(study.learning_rates) > 1 and rates[method] in (min(study.learning_rates), max(study.learning_rates)):
        remarks.append('learning rate at the end of the range')
    return (
        method,
        f'{rates[method]:g}' if method in rates else '-',
        str(len(whole)),
        f'{whole.value.mean():.{digits}f}' if len(whole) else '-',
        f'{whole.value.std():.{digits}f}' if len(whole) > 1 else '-',
        f'{found.mean():+.{digits}f}' if len(found) > 1 else '-',
        ' to '.join(f'{end:+.{digits}f}' for end in interval_of(found)) if len(found) > 1 else '-',
        f'{undisturbed.seconds.median():.0f}' if len(undisturbed) else '-',
        '; '.join(remarks),
    )


def table(lines: list[tuple[str, ...]]) -> str:
    """Markdown that is aligned for a terminal, too."""
    lines = [HEADER, *lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    shown = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |' for line in lines]
    return '\n'.join([shown[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *shown[1:]])


def report(study: Study, records: dict[str, dict[str, Any]], folder: Path) -> str:
    """Write ``table.md``, ``study.png``, ``rates.png`` and ``progress.png`` into ``folder``, of the runs that are there so far.

    Returns:
        The table.
    """
    found = [record for record in records.values() if record['method'] in study.methods]
    choosing = [record for record in found if record['phase'] == 'choose' and record['seed'] < FIRST_RATE_SEED + study.lr_seeds]
    rates = chosen_rates(study, choosing)
    compared = [r for r in found if r['phase'] == 'compare' and r['lr'] == rates.get(r['method']) and r['seed'] < study.seeds]
    runs, methods = frame(study, compared), list(study.methods)
    text = table([cells(study, runs, rates, method) for method in methods])
    used = sorted({', '.join(f'{key} {value}' for key, value in record['versions'].items()) for record in compared})
    with replacing(folder / 'table.md') as partial:
        partial.write_text(f'{text}\n\nRun with: {"; ".join(used) or "-"}.\n')
    runs = runs.dropna(subset='value')
    draw(study, runs, folder / 'study.png')
    draw_rates(study, frame(study, choosing).dropna(subset='value'), rates, folder / 'rates.png')
    draw_progress(study, runs, folder / 'progress.png')
    return text


def draw(study: Study, runs: pd.DataFrame, path: Path) -> None:
    """Each seed as a point, and the interval of the difference to the baseline."""
    figure = Figure(figsize=(10, 1.2 + 0.5 * len(study.methods)), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for position, method in enumerate(study.methods):
        values, found = runs[runs.method == method].value, differences(runs, method, study.baseline)
        left.plot(values, [position] * len(values), 'o', color='C0', alpha=0.5)
        left.plot(values.mean(), position, '|', color='C1', markersize=18)
        right.plot(found, [position] * len(found), 'o', color='C0', alpha=0.5)
        if len(found) > 1:
            (low, high), mean = interval_of(found), found.mean()
            right.errorbar(mean, position, xerr=[[mean - low], [high - mean]], fmt='|', color='C1', capsize=5)
    left.set_yticks(range(len(study.methods)), study.methods)
    left.set_ylim(len(study.methods) - 0.5, -0.5)
    left.set(xlabel=f'{study.metric}: runs and mean')
    right.set(xlabel=f'difference to {study.baseline}, same seed:\nruns and 95 % interval')
    right.axvline(0, color='0.6', linewidth=1)
    save_figure(figure, (left, right), path)


def draw_rates(study: Study, runs: pd.DataFrame, rates: dict[str, float], path: Path) -> None:
    """The metric over the learning rate: each run as a point, a line through the means, a ring around the rate that was chosen."""
    figure = Figure(figsize=(9, 4.5), layout='constrained')
    axes = figure.subplots()
    for number, method in enumerate(study.methods):
        own, style = runs[runs.method == method], line_style(number)
        means = own.groupby('lr').value.mean()
        axes.plot(means.index, means, label=method, **style)
        axes.plot(own.lr, own.value, '.', color=style['color'])
        if rates.get(method) in means.index:
            axes.plot(rates[method], means[rates[method]], 'o', color=style['color'], markersize=11, fillstyle='none')
    axes.set(xscale='log', xlabel='learning rate', ylabel=f'{study.metric}, validation part')
    axes.xaxis.set_major_formatter('{x:g}')
    figure.legend(loc='outside right upper')
    save_figure(figure, (axes,), path)


def draw_progress(study: Study, runs: pd.DataFrame, path: Path) -> None:
    """The metric of each validation, mean over seeds, over epochs or iterations and over the time of the training."""
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for number, method in enumerate(study.methods):
        own = runs[runs.method == method]
        curve = pd.DataFrame([pair for rows in own.validations for pair in rows], columns=['step', 'value']).groupby('step').value.mean()
        left.plot(curve.index, curve, marker='.', label=method, **line_style(number))
        seconds = own[~own.resumed.astype(bool)].seconds.median()
        right.plot(seconds * curve.index / curve.index.max(), curve, marker='.', **line_style(number))
    left.set(xlabel='epoch or iteration', ylabel=f'{study.metric}, validation part, mean over seeds')
    right.set(xlabel='s of training')
    figure.legend(loc='outside right upper')
    save_figure(figure, (left, right), path)


def line_style(number: int) -> dict[str, str]:
    """Of the line of a method: a colour, and another dash where ten colours are used up."""
    return dict(color=f'C{number % 10}', linestyle=('-', '--', ':')[number // 10 % 3])


def save_figure(figure: Figure, axes: Sequence[Axes], path: Path) -> None:
    """Write a plot as a whole or not at all."""
    for each in axes:
        each.grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix.removeprefix('.'))
