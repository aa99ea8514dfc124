#!/usr/bin/env python3
"""Train a transfer config with several learning-rate multipliers of the stem and draw the metric over them.

    python tools/analysis/sweep_stem_lr.py configs/coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py --seeds 0 1

Each run is one call of tools/train.py with its own folder below --out. Runs that are complete there are not repeated, so a sweep that was
stopped goes on, and more multipliers or seeds can be added. Writes sweep.json and sweep.png into --out.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / 'tools')]
from common import UsageError, run  # noqa: E402
from mmengine.config import Config  # noqa: E402
from progress import track  # noqa: E402
from run_logs import read_run  # noqa: E402

from orepa_mm.files import check_writable, replacing  # noqa: E402

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
    parser.add_argument('--cfg-options', nargs='+', default=(), help='passed on to every run, as for tools/train.py')
    return parser.parse_args()


def check(args: argparse.Namespace) -> Config:
    if not Path(args.config).is_file():
        raise UsageError(f'{args.config}: no such config file.')
    if min(args.multipliers) < 0:
        raise UsageError(f'--multipliers {min(args.multipliers):g}: a multiplier is not negative.')
    cfg = Config.fromfile(args.config)
    keys = (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    if not set(STEM) <= set(keys):
        raise UsageError(f'{args.config}: has no multiplier to sweep; optim_wrapper.paramwise_cfg.custom_keys needs {" and ".join(STEM)}.')
    return cfg


def final_metric(work_dir: Path, names: tuple[str, ...]) -> float:
    """The last validation's metric of the run in ``work_dir``."""
    log = read_run(work_dir)
    for name in names:
        if (value := log.last(name)) is not None:
            return value
    raise UsageError(f'{work_dir}: no {" or ".join(names)} was logged; choose with --metric, and let the config validate at its end.')


def train(args: argparse.Namespace, multiplier: float, seed: int, names: tuple[str, ...]) -> float:
    work_dir = args.out / f'lr_mult_{multiplier:g}' / f'seed_{seed}'
    result = work_dir / 'result.json'
    if result.is_file():
        return json.loads(result.read_text())['value']
    options = [f'optim_wrapper.paramwise_cfg.custom_keys.{key}.lr_mult={multiplier:g}' for key in STEM]
    command = [str(ROOT / 'tools' / 'train.py'), args.config, '--work-dir', str(work_dir)]
    command += ['--cfg-options', *options, f'randomness.seed={seed}', *args.cfg_options]
    print(f'$ {shlex.join(["python", *command])}', flush=True)
    start = time.monotonic()
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'output.log').open('w') as log:
        status = subprocess.run([sys.executable, '-W', 'ignore', *command], stdout=log, stderr=subprocess.STDOUT).returncode
    if status:
        last = (work_dir / 'output.log').read_text().strip().splitlines()[-1:]
        raise UsageError(f'training with multiplier {multiplier:g} failed: {"".join(last)} (output: {work_dir / "output.log"})')
    value = final_metric(work_dir, names)
    print(f'  {value:.4f} in {time.monotonic() - start:.0f} s', flush=True)
    write_json(result, dict(value=value))
    return value


def write_json(path: Path, content: dict) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + '\n')


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
    check_writable(args.out, folder=True)
    names = (args.metric,) if args.metric else METRICS[cfg.default_scope]
    values = {f'{m:g}': [] for m in sorted(set(args.multipliers))}
    for seed, multiplier in track([(seed, multiplier) for seed in args.seeds for multiplier in values], 'runs'):
        values[multiplier].append(train(args, float(multiplier), seed, names))
    found = next(name for name in names if any(name in p.read_text() for p in args.out.rglob('scalars.json')))
    sweep = dict(config=Path(args.config).stem, metric=found, seeds=list(args.seeds), values=values)
    write_json(args.out / 'sweep.json', sweep)
    draw(sweep, args.out / 'sweep.png')
    print(f'\n{"multiplier":>12}{found:>18}')
    for multiplier, runs in values.items():
        print(f'{multiplier:>12}{statistics.mean(runs):>18.4f}   {" ".join(f"{value:.4f}" for value in runs)}')
    print(f'wrote {args.out / "sweep.json"} and {args.out / "sweep.png"}')


if __name__ == '__main__':
    run(main)
