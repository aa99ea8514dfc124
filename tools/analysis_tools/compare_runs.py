#!/usr/bin/env python3
"""Draw several runs side by side: loss, learning rate and every metric of their validations; print a table of them.

    python tools/analysis_tools/compare_runs.py work_dirs/plain work_dirs/orepa --out runs.png

Each run is a work dir, and is called by its folder. A run that was resumed is drawn as one.
"""

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from common import UsageError, run  # noqa: E402
from run_logs import RunLog, read_runs  # noqa: E402

from orepa_mm.files import check_writable, replacing  # noqa: E402


def metrics_of(runs: list[RunLog], chosen: list[str] | None = None) -> list[str]:
    """The metrics of the validations of some runs, or those ``chosen``.

    Raises:
        UsageError: When a metric that was chosen is in no run.
    """
    found = list(dict.fromkeys(metric for each in runs for metric in each.metrics()))
    unknown = [metric for metric in chosen or () if metric not in found]
    if unknown:
        raise UsageError(f'--metrics {unknown[0]}: no run has it; there are {", ".join(found) or "none, as none was validated"}.')
    return found if chosen is None else chosen


def table(runs: list[RunLog], metrics: list[str]) -> str:
    """Last and best value of each metric, seconds a step and memory, a column for each run."""

    def cell(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)

    rows = [['', *(each.name for each in runs)]]
    rows.append(['steps', *(cell(each.train[-1]['step'] if each.train else None, 'd') for each in runs)])
    rows.append(['loss, last', *(cell(each.last('loss'), '.4g') for each in runs)])
    for metric in metrics:
        rows.append([f'{metric}, last', *(cell(each.last(metric), '.4g') for each in runs)])
        rows.append([f'{metric}, best', *(cell(each.best(metric), '.4g') for each in runs)])
    rows.append(['seconds a step, median', *(cell(each.seconds, '.3f') for each in runs)])
    rows.append(['GPU memory, MB', *(cell(each.memory, '.0f') for each in runs)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return '\n'.join('  '.join(line) for line in lines)


def draw(runs: list[RunLog], metrics: list[str], path: Path) -> None:
    """A panel for the loss, the learning rate and each metric, with a curve for each run that logged it."""

    def line(index: int) -> dict:
        return dict(color=f'C{index}', linestyle=('-', '--', '-.', ':')[index % 4], linewidth=1.4)  # curves on each other are still seen

    keys = [key for key in ('loss', 'lr') if any(each.curve(key)[0] for each in runs)] + metrics
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure((5 * columns, 3.2 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat[len(keys) :]:
        panel.remove()
    for panel, key in zip(axes.flat, keys, strict=False):
        for index, each in enumerate(runs):
            panel.plot(*each.curve(key), **line(index), marker='.' if key in metrics else None)
        steps = sorted({'epoch' if each.by_epoch else 'iteration' for each in runs}) if key in metrics else ['iteration']
        panel.set(title=key, xlabel=' or '.join(steps))
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
        if key == 'loss':
            panel.set_ylim(bottom=0)
    handles = [Line2D([], [], **line(index)) for index in range(len(runs))]
    figure.legend(handles, [each.name for each in runs], loc='outside upper center', ncols=min(4, len(runs)))
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format='png')


def compare_runs(work_dirs: list[Path], out: Path, chosen: list[str] | None = None) -> str:
    """Write the picture, and give the table.

    Args:
        work_dirs: Of the runs.
        out: The PNG file to write.
        chosen: Which metrics; default: all.

    Raises:
        UsageError: As :func:`.read_runs`, :func:`metrics_of` and :func:`.replacing`.
    """
    runs = read_runs(work_dirs)
    metrics = metrics_of(runs, chosen)
    draw(runs, metrics, out)
    return table(runs, metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='of a training')
    parser.add_argument('--out', type=Path, default=Path('runs.png'), metavar='OUT.png', help='picture to write (default: runs.png)')
    parser.add_argument('--metrics', nargs='+', metavar='METRIC', help='which metrics, such as coco/segm_mAP (default: all)')
    args = parser.parse_args()
    check_writable(args.out)
    print(compare_runs(args.work_dirs, args.out, args.metrics))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    run(main)
