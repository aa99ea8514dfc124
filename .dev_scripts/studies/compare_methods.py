#!/usr/bin/env python3
"""Compare methods over several seeds, each at a learning rate of its own: a study.

    python .dev_scripts/studies/compare_methods.py STUDY.py --data FOLDER
    python .dev_scripts/studies/compare_methods.py STUDY.py --report runs.jsonl --out report/ [--methods none DBB] [--baseline DBB]

The study file says what is compared; those in files/ show how. What has run is kept: a study that was stopped goes on where it was, by the
same command, and more seeds, methods or learning rates can be added. A run that fails is named, the others go on, and the next start tries
it again. Writes into --out: table.md, study.png (runs and differences), rates.png (the metric over the learning rate), progress.png (over
steps and time), and runs.jsonl with a line for each run. With --report the others are made again from its lines.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools'), str(Path(__file__).resolve().parent)]
import torch  # noqa: E402
from common import UsageError, run  # noqa: E402
from runs import cores, read_records  # noqa: E402
from study import carry_out, read_study  # noqa: E402
from study_report import report  # noqa: E402

from orepa_mm.files import check_writable  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, metavar='STUDY.py', help='what to compare')
    parser.add_argument('--data', type=Path, metavar='FOLDER', help="takes the place of the study's data_root")
    parser.add_argument('--seeds', type=int, metavar='N', help="runs of each method (default: the study's)")
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder of the study (default: work_dirs/study_<name>)')
    parser.add_argument('--jobs', type=int, default=torch.cuda.device_count() or cores(), help='runs at a time (default: a GPU each)')
    parser.add_argument('--report', type=Path, metavar='RUNS.jsonl', help='run nothing')
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='report some of the methods')
    parser.add_argument('--baseline', metavar='NAME', help="report differences to this one (default: the study's)")
    args = parser.parse_args()
    if args.jobs < 1:
        raise UsageError(f'--jobs {args.jobs}: give at least 1.')
    study = read_study(args.study, args.data, args.seeds)
    study = replace(study, baseline=args.baseline or study.baseline)
    chosen = [study.baseline, *(args.methods or study.methods)]
    unknown = [name for name in chosen if name not in study.methods]
    if unknown or (args.report and not args.report.is_file()):
        raise UsageError(f'{args.study}: has no method {unknown[0]!r}.' if unknown else f'{args.report}: no such file.')
    study = replace(study, methods={name: options for name, options in study.methods.items() if name in chosen})
    out = args.out or Path('work_dirs') / f'study_{study.name}'
    check_writable(out, folder=True)
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(args.report) if args.report else carry_out(study, out, args.jobs, partial(report, study, folder=out))
    print(f'\n{report(study, records, out)}\nwrote table.md, study.png, rates.png and progress.png into {out}')


if __name__ == '__main__':
    run(main)
