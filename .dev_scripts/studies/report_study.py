#!/usr/bin/env python3
"""Make the table and the pictures of a study from the lines of its runs.

    python .dev_scripts/studies/report_study.py STUDY.py work_dirs/study_cifar10_scratch/runs.jsonl report/
    python .dev_scripts/studies/report_study.py STUDY.py runs.jsonl report/ --methods none DBB      # these alone
    python .dev_scripts/studies/report_study.py STUDY.py runs.jsonl report/ --baseline DBB          # differences to it

Writes table.md, study.png, rates.png and progress.png, as .dev_scripts/studies/compare_methods.py does, of the runs that are there.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools'), str(Path(__file__).resolve().parent)]
from common import UsageError, run  # noqa: E402
from runs import read_records  # noqa: E402
from study import read_study  # noqa: E402
from study_report import report, table  # noqa: E402

from orepa_mm.files import check_writable  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, metavar='STUDY.py', help='what was compared')
    parser.add_argument('runs', type=Path, metavar='RUNS.jsonl', help='a line for each run')
    parser.add_argument('out', type=Path, metavar='DIR', help='folder for the table and the pictures')
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='some of the methods (default: all)')
    parser.add_argument('--baseline', metavar='NAME', help="what the others are compared with (default: the study's)")
    parser.add_argument('--seeds', type=int, metavar='N', help="runs of each method (default: the study's)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    study = read_study(args.study, seeds=args.seeds)
    if not args.runs.is_file():
        raise UsageError(f'{args.runs}: no such file.')
    study = replace(study, baseline=args.baseline or study.baseline)
    for option, name in [('--baseline', study.baseline), *(('--methods', name) for name in args.methods or ())]:
        if name not in study.methods:
            raise UsageError(f'{option} {name!r}: {args.study} has {", ".join(map(repr, study.methods))}.')
    if args.methods:
        study = replace(study, methods={name: study.methods[name] for name in dict.fromkeys([study.baseline, *args.methods])})
    records = read_records(args.runs)
    if not any(record.get('method') in study.methods for record in records.values()):
        raise UsageError(f'{args.runs}: has no runs of the methods in {args.study}.')
    check_writable(args.out, folder=True)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f'{table(report(study, records, args.out))}\nwrote table.md, study.png, rates.png and progress.png into {args.out}')


if __name__ == '__main__':
    run(main)
