#!/usr/bin/env python3
"""Kill trainings again and again, resume them, and compare what they end with to a run that was left alone.

    python .dev_scripts/kill_and_resume.py --kills 20                # all three toolboxes, about 20 minutes on 2 cores
    python .dev_scripts/kill_and_resume.py coco --kills 3 --seed 1

The mini configs with momentum, averaged weights, augmentation in two worker processes and validation in deployed form, on small drawn
sets. Every third kill comes while a checkpoint is written, the others at random; SIGKILL and SIGTERM in turn.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ('tools', 'demo')]
import make_mini_data  # noqa: E402
from common import UsageError, run  # noqa: E402

CONFIGS = dict(
    imagenet='imagenet/orepa-resnet18-w16_imagenet-mini.py',
    coco='coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py',
    cityscapes='cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py',
)
PICTURES = dict(imagenet=(60, 10, 32), coco=(12, 4, 96), cityscapes=(12, 4, 128))
CHECKPOINTS = 20  # of a whole run
TEXT = """
_base_ = '{base}'
data_root = '{data}'
model = dict(backbone=dict(init_cfg=None))
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(data_root=data_root))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
train_cfg = dict({length}={steps}, val_interval={interval})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={interval}, filename_tmpl='step_{{}}.pth', max_keep_ckpts=2))
custom_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='EMAHook')]
log_level = 'ERROR'
"""


def config_of(name: str, folder: Path) -> Path:
    make_mini_data.make(name, folder / f'{name}-mini', *PICTURES[name])
    by_iterations = name == 'cityscapes'
    text = TEXT.format(
        base=ROOT / 'configs' / CONFIGS[name],
        data=folder / f'{name}-mini',
        length='max_iters' if by_iterations else 'max_epochs',
        steps=3 * CHECKPOINTS if by_iterations else CHECKPOINTS,
        interval=3 if by_iterations else 1,
    )
    if name == 'coco':
        text += "val_evaluator = dict(ann_file=data_root + '/annotations/instances_val2017.json')\ntest_evaluator = val_evaluator\n"
    path = folder / f'{name}.py'
    path.write_text(text)
    return path


def start(config: Path, work_dir: Path) -> subprocess.Popen:
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(work_dir), '--resume']
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    log = (work_dir.parent / f'{work_dir.name}.log').open('a')
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Whether ``condition`` came true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def kill(process: subprocess.Popen, number: signal.Signals) -> None:
    os.killpg(process.pid, number)  # with its workers
    process.wait()


def final_state(work_dir: Path) -> dict:
    last = max(work_dir.glob('step_*.pth'), key=lambda path: int(re.findall(r'\d+', path.name)[0]))
    checkpoint = torch.load(last, weights_only=False)
    optimizer = checkpoint['optimizer']
    optimizer = optimizer if 'state' in optimizer else next(iter(optimizer.values()))
    scalars = [json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json') for line in path.read_text().splitlines()]
    metrics = [row for row in scalars if any(key in row for key in ('accuracy/top1', 'coco/bbox_mAP', 'mIoU'))]
    last_metrics = max(metrics, key=lambda row: row['step'], default={})
    return dict(
        name=last.name,
        weights=checkpoint['state_dict'],
        averages=checkpoint['ema_state_dict'],
        momenta=optimizer['state'],
        metrics={key: value for key, value in last_metrics.items() if 'time' not in key},
    )


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def survive(name: str, kills: int, generator: random.Random, folder: Path) -> tuple[int, int]:
    """Number of kills, and of those while a checkpoint was written, after which the run ended like the one left alone."""
    config = config_of(name, folder)
    undisturbed, disturbed = folder / f'{name}-undisturbed', folder / f'{name}-disturbed'
    began = time.monotonic()
    if start(config, undisturbed).wait():
        raise UsageError(f'{name}: the undisturbed run failed; see {undisturbed}.log')
    seconds = time.monotonic() - began
    print(f'{name}: undisturbed run in {seconds:.0f} s', flush=True)
    done = writing = 0
    while done < kills:
        process = start(config, disturbed)
        before = set(disturbed.glob('step_*.pth')) if disturbed.is_dir() else set()
        # Let it come one checkpoint further every other time, so that the end is reached after the kills that are asked for.
        if done % 2 and not wait_for(process, lambda seen=before: set(disturbed.glob('step_*.pth')) - seen):
            break
        if done % 3 == 2:
            hit = wait_for(process, lambda: any(disturbed.glob('*.partial')))
        else:
            later = time.monotonic() + generator.uniform(0.2, 1.3 * seconds / CHECKPOINTS)
            hit = wait_for(process, lambda then=later: time.monotonic() > then)
        if not hit:
            break
        kill(process, signal.SIGKILL if done % 4 < 2 else signal.SIGTERM)
        done += 1
        writing += any(disturbed.glob('*.partial'))
        left = sorted(path.name for path in disturbed.glob('*.pth*'))
        print(f'{name}: kill {done}, {", ".join(left) or "no checkpoint yet"}', flush=True)
    process = start(config, disturbed)
    if process.wait():
        raise UsageError(f'{name}: the resumed run failed; see {disturbed}.log')
    expected, found = final_state(undisturbed), final_state(disturbed)
    wrong = [key for key in expected if not equal(expected[key], found[key])]
    if wrong:
        raise UsageError(f'{name}: after {done} kills the {", ".join(wrong)} differ from those of the undisturbed run ({folder}).')
    return done, writing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='DATASET', help=f'{", ".join(CONFIGS)} (default: all)')
    parser.add_argument('--kills', type=int, default=20, help='kills of each (default: 20)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in CONFIGS]
    if unknown:
        parser.error(f'unknown dataset {unknown[0]!r}; choose from {", ".join(CONFIGS)}')
    folder = Path(tempfile.mkdtemp(prefix='kill_and_resume-'))
    for name in args.names or CONFIGS:
        done, writing = survive(name, args.kills, random.Random(args.seed), folder)
        print(f'{name}: {done} kills, {writing} of them while a checkpoint was written: same weights, averages, momenta and metrics')


if __name__ == '__main__':
    run(main)
