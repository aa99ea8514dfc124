#!/usr/bin/env python3
"""Compare methods over several seeds, each at a learning rate of its own: a study.

    python .dev_scripts/studies/compare_methods.py .dev_scripts/studies/files/cifar10_scratch.py --data FOLDER

The study file says what is compared; those in files/ show how. First the learning rate of each method is chosen by a few
runs that are judged by the validation part of the data, then each method is trained with every seed and judged by the test part. Each
run is tools/train.py and tools/test.py in processes of its own. What has run is kept: a study that was stopped goes on where it was, by
the same command, and more seeds, methods or learning rates can be added. A run that fails is named, the others go on, and the next
start tries it again.

Writes into --out: table.md, study.png (runs and differences), rates.png (the metric over the learning rate), progress.png (over steps and
time), and runs.jsonl with a line for each run: its settings, versions, metrics, those of each validation, the time of its training in
seconds and the peak memory of its process. report_study.py makes the others again from runs.jsonl.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools'), str(Path(__file__).resolve().parent)]
from common import UsageError, run  # noqa: E402
from runs import default_jobs  # noqa: E402
from study import carry_out, read_study  # noqa: E402
from study_report import report, table  # noqa: E402

from orepa_mm.files import check_writable  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, metavar='STUDY.py', help='what to compare')
    parser.add_argument('--data', type=Path, metavar='FOLDER', help="takes the place of the study's data_root")
    parser.add_argument('--seeds', type=int, metavar='N', help="runs of each method (default: the study's)")
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder of the study (default: work_dirs/study_<name>)')
    parser.add_argument('--jobs', type=int, default=default_jobs(), help='runs at a time (default: one for each GPU or logical core)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.jobs < 1:
        raise UsageError(f'--jobs {args.jobs}: give at least 1.')
    study = read_study(args.study, args.data, args.seeds)
    out = args.out or Path('work_dirs') / f'study_{study.name}'
    check_writable(out, folder=True)

    records = carry_out(study, out, args.jobs, partial(report, study, folder=out))
    rows = report(study, records, out)
    print(f'\n{table(rows)}\nwrote table.md, study.png, rates.png, progress.png and runs.jsonl into {out}')


if __name__ == '__main__':
    run(main)
