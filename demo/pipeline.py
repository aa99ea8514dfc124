#!/usr/bin/env python3
"""The whole recipe on small drawn data: pretrain a classifier, transfer it to detection and segmentation, test all re-parameterized.

The configs are the mini twins of the ImageNet, COCO and Cityscapes ones. Writes ``work_dirs/pipeline/report.html``; every step is a
command that the report lists. ``--short`` trains for a few iterations only, to see that everything runs.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from picture_errors import label_errors, object_errors
from report import (
    CLASSIFIER,
    DETECTOR,
    ROOT,
    SEGMENTOR,
    Section,
    StepError,
    Steps,
    images,
    measure,
    plot_losses,
    print_rows,
    replace_folder,
    run,
    table_rows,
    write_page,
)

IMAGES_SHOWN = 6


@dataclass(frozen=True)
class Task:
    """One model of the pipeline: its name, config, dataset, and the metrics its table shows (title, key, format)."""

    name: str
    title: str
    config: str
    data: str
    metrics: tuple[tuple[str, str, str], ...]

    @property
    def transfers(self) -> bool:
        return self.name != 'classifier'


ACCURACY = (('top-1 accuracy, %', 'accuracy/top1', '.2f'),)
PRECISION = tuple((f'{kind} {name}', f'coco/{kind}_{name}', '.4f') for kind in ('bbox', 'segm') for name in ('mAP', 'mAP_50'))
OVERLAP = (('mIoU, %', 'mIoU', '.2f'), ('pixel accuracy, %', 'aAcc', '.2f'))
TASKS = (
    Task('classifier', 'pretrain the OREPA ResNet-18 classifier', CLASSIFIER, 'imagenet-mini', ACCURACY),
    Task('detector', 'transfer it to Mask R-CNN', DETECTOR, 'coco-mini', PRECISION),
    Task('segmentor', 'transfer it to PSPNet', SEGMENTOR, 'cityscapes-mini', OVERLAP),
)


ERRORS = dict(detector=object_errors, segmentor=label_errors)


def config_text(task: Task, folder: Path, short: bool) -> str:
    """A config that starts from the classifier in ``folder``; for a short run also with less to do."""
    lines = [f"_base_ = '{ROOT / task.config}'", '']
    if task.transfers:
        lines += [f"model = dict(backbone=dict(init_cfg=dict(checkpoint='{folder}/work/classifier/last.pth')))"]
    painted = ', visualization=dict(interval=1)' if task.name == 'segmentor' else ''  # mmseg paints every 50th picture by default
    if not short:
        lines += [f'default_hooks = dict({painted.removeprefix(", ")})']
        return '\n'.join(lines) + '\n'
    root = f'{folder}/data/{task.data}'
    lines += [
        f'train_dataloader = dict(batch_size=4, dataset=dict(data_root={root!r}))',
        f'val_dataloader = dict(dataset=dict(data_root={root!r}))',
        'test_dataloader = val_dataloader',
    ]
    if task.name == 'detector':
        lines += [f"val_evaluator = dict(ann_file='{root}/annotations/instances_val2017.json')", 'test_evaluator = val_evaluator']
    loop, length = ('max_iters', 4) if task.name == 'segmentor' else ('max_epochs', 1)
    lines += [f'train_cfg = dict({loop}={length}, val_interval={length})']
    lines += [f'default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={length}){painted})']
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--short', action='store_true', help='a few iterations of each step, on a dozen images')
    parser.add_argument('--out', type=Path, help='an empty folder for everything (default: work_dirs/pipeline/, which is replaced)')
    args = parser.parse_args()
    start = time.monotonic()
    if args.out is None:
        replace_folder(ROOT / 'work_dirs' / 'pipeline')
    elif args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise StepError(f'{args.out}: is not empty; give a new folder.')
    folder = (args.out or ROOT / 'work_dirs' / 'pipeline').resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)  # where the configs' paths begin
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder  # commands run in the repository

    steps, sections = Steps('pipeline', folder), []
    small = ('--out', str(shown / 'data'), '--train', '10', '--val', '5') if args.short else ()
    steps.step('draw the datasets', 'demo/make_mini_data.py', *small)
    for task in TASKS:
        config, work = shown / f'{task.name}.py', shown / 'work' / task.name
        (ROOT / config).write_text(config_text(task, shown, args.short))
        steps.step(task.title, 'tools/train.py', str(config), '--work-dir', str(work))
        painted = shown / f'pictures_{task.name}' if task.transfers else None
        kept = dict(detector=work / 'predictions.pkl', segmentor=work / 'labels').get(task.name)
        metrics = steps.test_both_forms(config, work / 'last.pth', work, painted, kept)
        rows = table_rows(metrics, measure(ROOT / config, ROOT / work / 'last.pth', runs=3 if args.short else 30), task.metrics)
        print_rows(rows, task.name)
        plot_losses(ROOT / work, folder / f'loss_{task.name}.png', task.title)
        section = Section(rows, f'loss_{task.name}.png', title=f'{task.name.capitalize()}: {task.title}')
        if painted:
            errors = ERRORS[task.name](Config.fromfile(ROOT / config), ROOT / kept)
            section.images = images(folder, ROOT / painted, IMAGES_SHOWN, errors)
            section.about_images = 'Ground truth and predictions of the test images with the largest errors.'
        sections.append(section)
    path = folder / 'report.html'
    about = (
        'Networks of a quarter of the usual width on small drawn images, minutes of training each: it shows that everything works and what '
        'it costs, and its scores say nothing about full-width networks. The next step is a recipe of docs/configs.md.'
    )
    write_page(path, 'From pretraining to re-parameterized transfer', [about], sections, steps)
    print(f'[pipeline] {(time.monotonic() - start) / 60:.1f} minutes; report: {path}')


if __name__ == '__main__':
    run(main)
