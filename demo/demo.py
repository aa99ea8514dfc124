#!/usr/bin/env python3
"""Fine-tune a small OREPA Mask R-CNN, test it in both forms, time it, and write a report.

Draws a COCO-format set (or takes yours: ``--data FOLDER``), pretrains a narrow OREPA classifier for a moment (or takes weights of the
whole detector: ``--load-from CHECKPOINT``), fine-tunes the detector from it with the stem multiplier, tests it in training form and
re-parameterized, and writes ``work_dirs/demo/report.html``. Every step is a command that the report lists, so each can be run again by
hand.
"""

import argparse
import os
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from picture_errors import OVERLAP, SCORE, PictureError, object_errors
from report import (
    CLASSIFIER,
    DETECTOR,
    ROOT,
    Section,
    StepError,
    Steps,
    images,
    measure,
    plot_losses,
    print_rows,
    read_coco,
    replace_folder,
    run,
    table_rows,
    write_page,
)

from orepa_mm.deploy.formats import require_torch
from orepa_mm.deploy.loading import load_model

TRAIN_IMAGES = 3000  # how many images the detector sees, whatever the size of the set
IMAGES_SHOWN = 8
SIZES = (32, 2048)  # pixels: what the network has room for, and what a CPU has patience for
LOSSES = ('loss', 'loss_cls', 'loss_bbox', 'loss_mask', 'loss_rpn_cls', 'loss_rpn_bbox')


def coco_summary(data: Path) -> tuple[list[str], int]:
    """Category names of a COCO-format folder in the order of their ids, and the number of images to train on."""
    path = data / 'annotations' / 'instances_train2017.json'
    if not path.is_file():
        raise StepError(
            f'{path}: no such file. DATA is a folder in the layout of COCO: annotations/instances_{{train,val}}2017.json, '
            'train2017/ and val2017/.'
        )
    content = read_coco(path, masks=True)
    names = [category['name'] for category in sorted(content['categories'], key=lambda category: category['id'])]
    odd = [name for name in names if not name.strip() or not name.isprintable()]
    if odd:
        raise StepError(f'{path}: the category name {odd[0]!r} is empty or has characters that cannot be printed; rename it.')
    if '{{' in str(data.resolve()):
        raise StepError(f'{data}: a path with {{{{ in it cannot stand in a config; rename the folder.')
    return names, len(content['images'])


@dataclass(frozen=True)
class Settings:
    """What a run of the demo is asked for.

    Attributes:
        data: A dataset in the layout of COCO; None for the drawn one.
        load_from: Weights of the whole detector to start from; None for a classifier that is pretrained first.
        epochs: Of the fine-tuning; default: the config's, or for another dataset so many that some 3000 images are seen.
        size: Longer side of the images in pixels; default: the config's, or 320 for another dataset.
    """

    data: Path | None = None
    load_from: Path | None = None
    epochs: int | None = None
    size: int | None = None

    def check(self, folder: Path) -> None:
        """Refuse what cannot work before anything is written; ``folder`` is the one that is written anew.

        Raises:
            StepError: With the option that is wrong.
        """
        for option, path in (('--data', self.data), ('--load-from', self.load_from)):
            if path and path.resolve().is_relative_to(folder):
                raise StepError(f'{option} {path}: lies in {folder.relative_to(ROOT)}, which is written anew; move it somewhere else.')
        if self.epochs is not None and self.epochs < 1:
            raise StepError(f'--epochs {self.epochs}: give 1 or more.')
        if self.size is not None and not SIZES[0] <= self.size <= SIZES[1]:
            raise StepError(f'--size {self.size}: give {SIZES[0]} to {SIZES[1]} pixels.')

    def check_weights(self, classes: int) -> None:
        """Load the weights into the detector, with so many classes where the dataset is not the drawn one.

        Raises:
            CheckpointError: When they cannot be read, or are of another network.
        """
        if self.load_from is None:
            return
        cfg = Config.fromfile(ROOT / DETECTOR)
        if classes:
            cfg.merge_from_dict({f'model.roi_head.{head}_head.num_classes': classes for head in ('bbox', 'mask')})
        load_model(cfg, self.load_from)


def config_text(settings: Settings, classifier: Path, names: Path, classes: int, images: int) -> str:
    """The demo's config: the mini config with the paths, and what the settings ask for.

    Args:
        settings: As they were given.
        classifier: Checkpoint the backbone starts from, unless the settings have weights of all of it.
        names: File of its classes' names, one in a line. Not in the config: mmengine substitutes what is in braces in a config's text.
        classes: How many there are, of a dataset that is not the drawn one.
        images: How many there are to train on, likewise.
    """
    lines = [f"_base_ = '../../{DETECTOR}'", '']
    if settings.load_from:
        lines += [f'load_from = {str(settings.load_from.resolve())!r}', 'model = dict(backbone=dict(init_cfg=None))']
    else:
        lines += [f'model = dict(backbone=dict(init_cfg=dict(checkpoint={str(classifier)!r})))']
    epochs, size = settings.epochs, settings.size
    if settings.data:
        epochs, size = epochs or max(2, round(TRAIN_IMAGES / images)), size or 320
        lines += [f"model['roi_head'] = dict(bbox_head=dict(num_classes={classes}), mask_head=dict(num_classes={classes}))"]
    if size:
        lines += [
            'train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline',
            f'train_pipeline[2].update(scale={size, size})',
            f'test_pipeline[1].update(scale={size, size})',
            'train_dataloader = dict(dataset=dict(pipeline=train_pipeline))',
            'val_dataloader = dict(dataset=dict(pipeline=test_pipeline))',
            'test_dataloader = val_dataloader',
        ]
    if settings.data:
        root = str(settings.data.resolve()) + '/'
        lines += [
            f'data = dict(data_root={root!r}, metainfo=dict(classes={str(names)!r}))',
            "train_dataloader['dataset'].update(data)",
            "val_dataloader['dataset'].update(data)",
            f'val_evaluator = dict(ann_file={root + "annotations/instances_val2017.json"!r})',
            'test_evaluator = val_evaluator',
        ]
    if epochs:
        steps = [max(1, round(epochs * 0.7)), max(1, round(epochs * 0.9))]
        lines += [
            f'train_cfg = dict(max_epochs={epochs}, val_interval={epochs})',
            'param_scheduler = [',
            "    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),",
            f"    dict(type='MultiStepLR', begin=0, end={epochs}, by_epoch=True, milestones={steps}, gamma=0.1),",
            ']',
            f'default_hooks = dict(checkpoint=dict(interval={epochs}))',
        ]
    return '\n'.join(lines) + '\n'


def introduction(cfg: Config, settings: Settings, counts: tuple[int, int]) -> list[str]:
    """What the page is about: the network, the data (images to train and to test on), the schedule, and what comes next."""
    backbone, pipeline = cfg.model.backbone, cfg.test_dataloader.dataset.pipeline
    size = ' x '.join(map(str, next(step['scale'] for step in pipeline if step['type'] == 'Resize')))
    part = {16: 'a quarter'}.get(backbone.base_channels, f'{backbone.base_channels / 64:g}')
    start = f'the weights of {settings.load_from}' if settings.load_from else 'a classifier pretrained on small drawings for a moment'
    data = str(settings.data) if settings.data else 'drawn scenes of five shapes (data/coco-mini)'
    text = (
        f'A Mask R-CNN on an OREPA ResNet-{backbone.depth} of {part} of the usual width, started from {start}. '
        f'Fine-tuned for {cfg.train_cfg.max_epochs} epochs on {counts[0]} images and tested on {counts[1]} others, within {size} pixels; '
        f'data: {data}.'
    )
    own = '' if settings.data else 'With your data: make demo DATA=/path/to/coco-like. '
    further = (
        'It shows that everything works and what it costs. Its scores say nothing about a full-width network pretrained on ImageNet. '
        f'{own}The next step is the full-width recipe:'
    )
    return [text, further]


def report(
    steps: Steps, about: list[str], metrics: list[dict], measured: dict, agreement: list[str], errors: dict[str, PictureError]
) -> Path:
    """Write ``report.html`` beside the images it shows; ``agreement`` is the table that the export printed."""
    names = [(f'{kind} {name}', f'coco/{kind}_{name}', '.4f') for kind in ('bbox', 'segm') for name in ('mAP', 'mAP_50')]
    rows = table_rows(metrics, measured, names)
    print_rows(rows)
    path = steps.folder / 'report.html'
    section = Section(
        rows,
        'loss.png',
        images(steps.folder, steps.folder / 'pictures', IMAGES_SHOWN, errors),
        f"Ground truth on the left, the re-parameterized model's predictions on the right. Of {len(errors)} validation images the worst, "
        f'by one minus the F1 score of the objects found (score {SCORE} or more, IoU {OVERLAP} or more); the mean is '
        f'{statistics.fmean(each.error for each in errors.values()):.2f}.',
        [re.split('  +', line) for line in agreement],
    )
    title = 'OREPA Mask R-CNN, fine-tuned and re-parameterized'
    write_page(path, title, about, [section], steps, 'python tools/train.py configs/coco/mask-rcnn_orepa-r50_fpn_1x_coco.py')
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='a dataset in the layout of COCO to fine-tune on (default: a drawn one)')
    parser.add_argument('--load-from', type=Path, metavar='CHECKPOINT', help='weights of the detector to start from (default: pretrains)')
    parser.add_argument('--epochs', type=int, help="of the fine-tuning (default: 7, or what suits the dataset's size)")
    parser.add_argument('--size', type=int, metavar='PIXELS', help='longer side of the images (default: 192, or 320 of your data)')
    settings = Settings(**vars(parser.parse_args()))
    start = time.monotonic()
    out = Path('work_dirs/demo')
    folder = ROOT / out
    classifier_dir, detector_dir = out / 'classifier', out / 'detector'
    config, checkpoint, predictions = out / 'config.py', detector_dir / 'last.pth', out / 'predictions.pkl'
    settings.check(folder)  # what is wrong ends it here, before anything is written
    names, count = coco_summary(settings.data) if settings.data else ([], 0)
    settings.check_weights(len(names))
    require_torch()
    replace_folder(folder)
    (folder / 'classes.txt').write_text('\n'.join(names))
    (ROOT / config).write_text(config_text(settings, classifier_dir / 'last.pth', out / 'classes.txt', len(names), count))

    steps = Steps('demo', folder)
    drawn = ([] if settings.load_from else ['imagenet']) + ([] if settings.data else ['coco'])
    if drawn:
        steps.step('draw the datasets', 'demo/make_mini_data.py', *drawn)
    if not settings.load_from:
        steps.step('pretrain a narrow OREPA ResNet-18 classifier', 'tools/train.py', CLASSIFIER, '--work-dir', str(classifier_dir))
    steps.step('fine-tune the OREPA Mask R-CNN', 'tools/train.py', str(config), '--work-dir', str(detector_dir))
    metrics = steps.test_both_forms(config, checkpoint, out, out / 'pictures', predictions)

    exported = out / 'model.onnx'
    lines = steps.step(
        'write it as an ONNX file and compare that', 'tools/deploy/export_onnx.py', str(config), str(checkpoint), str(exported), '--dynamic'
    )
    first, last = (next(i for i, line in enumerate(lines) if line.startswith(start)) for start in ('size ', '('))
    agreement = lines[first:last]
    print('\n'.join(f'  {line}' for line in agreement))

    print('\n[demo] timing the two forms', flush=True)
    measured = measure(ROOT / config, ROOT / checkpoint)
    plot_losses(ROOT / detector_dir, folder / 'loss.png', 'Fine-tuning the OREPA Mask R-CNN', LOSSES)
    os.chdir(ROOT)  # the config's paths begin there
    cfg = Config.fromfile(config)
    errors = object_errors(cfg, predictions)
    train = Path(cfg.train_dataloader.dataset.data_root, cfg.train_dataloader.dataset.ann_file)
    about = introduction(cfg, settings, (len(read_coco(train)['images']), len(errors)))
    path = report(steps, about, metrics, measured, agreement, errors)
    print(f'[demo] {(time.monotonic() - start) / 60:.1f} minutes; report: {path}')


if __name__ == '__main__':
    run(main)
