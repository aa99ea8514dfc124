#!/usr/bin/env python3
"""Train a transfer config with several learning-rate multipliers of the stem and draw the metric over them.

    python .dev_scripts/studies/sweep_stem_lr.py configs/coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py --seeds 0 1

Each run is tools/train.py, and tools/test.py on the validation data, in processes of their own. Runs that are complete in --out are not
repeated, so a sweep that was stopped goes on, and more multipliers or seeds can be added. Writes sweep.json and sweep.png into --out.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools'), str(Path(__file__).resolve().parent)]
from common import UsageError, add_cfg_options, merge_options, run  # noqa: E402
from mmengine.config import Config  # noqa: E402
from preflight import check_data  # noqa: E402
from runs import Runs, default_jobs, metric_of, run_of  # noqa: E402

from orepa_mm.files import replacing  # noqa: E402

STEM = ('backbone.conv1', 'backbone.bn1')
MULTIPLIERS = (0.0, 0.03, 0.1, 0.3, 1.0)
METRICS = {'mmdet': ('coco/segm_mAP', 'coco/bbox_mAP'), 'mmseg': ('mIoU',), 'mmpretrain': ('accuracy/top1',)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a transfer config, with the stem multiplier in paramwise_cfg.custom_keys')
    parser.add_argument('--multipliers', type=float, nargs='+', default=MULTIPLIERS, help='default: %(default)s; 0 keeps the stem as it is')
    parser.add_argument('--seeds', type=int, nargs='+', default=(0,), help='each multiplier is trained with each seed (default: 0)')
    parser.add_argument('--metric', help='which validation metric to draw (default: mask or box mAP, mIoU, top-1)')
    parser.add_argument('--out', type=Path, help='folder of the runs (default: work_dirs/sweep_<config name>)')
    parser.add_argument('--jobs', type=int, default=default_jobs(), help='runs at a time (default: one for each GPU or logical core)')
    add_cfg_options(parser)
    return parser.parse_args()


def check(args: argparse.Namespace) -> Config:
    if not Path(args.config).is_file():
        raise UsageError(f'{args.config}: no such config file.')
    if args.jobs < 1:
        raise UsageError(f'--jobs {args.jobs}: give at least 1.')
    if min(args.multipliers) < 0:
        raise UsageError(f'--multipliers {min(args.multipliers):g}: a multiplier is not negative.')
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options or {})
    keys = (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    if not set(STEM) <= set(keys):
        raise UsageError(f'{args.config}: has no multiplier to sweep; optim_wrapper.paramwise_cfg.custom_keys needs {" and ".join(STEM)}.')
    return cfg


def draw(sweep: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    values = {float(key): value for key, value in sweep['values'].items()}
    multipliers = sorted(values)
    positive = [m for m in multipliers if m > 0]
    zero = min(positive, default=1) / 4  # where a logarithmic axis shows the multiplier 0
    x = [m or zero for m in multipliers]
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    axes.plot(x, [statistics.mean(values[m]) for m in multipliers], color='C0', marker='o')
    for position, m in zip(x, multipliers, strict=True):
        axes.plot([position] * len(values[m]), values[m], color='C0', marker='.', linestyle='none', alpha=0.4)
    axes.set_xscale('log')
    axes.set_xticks(x, [f'{m:g}' for m in multipliers])
    axes.minorticks_off()
    seeds = len(sweep['seeds'])
    axes.set(xlabel="learning rate of the stem, relative to the network's", ylabel=sweep['metric'])
    axes.set_title(f'{sweep["config"]}, mean and {seeds} runs each' if seeds > 1 else sweep['config'], fontsize=9)
    axes.grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix.removeprefix('.'))
    plt.close(figure)


def main() -> None:
    args = parse_args()
    cfg = check(args)
    args.out = args.out or Path('work_dirs') / f'sweep_{Path(args.config).stem}'
    names = (args.metric,) if args.metric else METRICS[cfg.default_scope]
    multipliers = sorted(set(args.multipliers))
    runs = []
    for seed in args.seeds:
        for multiplier in multipliers:
            options = {f'optim_wrapper.paramwise_cfg.custom_keys.{key}.lr_mult': multiplier for key in STEM} | {'randomness.seed': seed}
            name = f'lr_mult_{multiplier:g}/seed_{seed}'
            runs.append(run_of(cfg, options, name, test_on='val', multiplier=multiplier, seed=seed))
    with Runs(args.out, args.jobs, len(runs)) as going:
        check_data(cfg, ('train', 'val'))
        records = going.carry_out(runs)
    failed = [record for record in records if 'error' in record]
    if failed:
        raise UsageError(f'{len(failed)} of {len(records)} runs failed, {failed[0]["run"]} first: {failed[0]["error"]}')
    values = {f'{m:g}': [metric_of(record, names) for record in records if record['multiplier'] == m] for m in multipliers}
    found = next(name for name in names if name in records[0]['metrics'])
    sweep = dict(config=Path(args.config).stem, metric=found, seeds=list(args.seeds), values=values)
    with replacing(args.out / 'sweep.json') as partial:
        partial.write_text(json.dumps(sweep, indent=2) + '\n')
    draw(sweep, args.out / 'sweep.png')
    print(f'\n{"multiplier":>12}{found:>18}')
    for multiplier, found in values.items():
        print(f'{multiplier:>12}{statistics.mean(found):>18.4f}   {" ".join(f"{value:.4f}" for value in found)}')
    print(f'wrote {args.out / "sweep.json"} and {args.out / "sweep.png"}')


if __name__ == '__main__':
    run(main)
