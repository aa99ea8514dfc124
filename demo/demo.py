#!/usr/bin/env python3
"""Fine-tune a small OREPA Mask R-CNN, test it in both forms, time it, and write a report.

Draws a COCO-format set (or takes yours: ``--data FOLDER``), pretrains a narrow OREPA classifier for a moment, fine-tunes the detector
from it with the stem multiplier, tests it in training form and re-parameterized, and writes ``work_dirs/demo/report.html``. Every step is a
command that the report lists, so each can be run again by hand.
"""

import argparse
import html
import time
from pathlib import Path

from report import (
    CLASSIFIER,
    DETECTOR,
    ROOT,
    StepError,
    Steps,
    command_list,
    measure,
    pictures,
    plot_losses,
    print_rows,
    read_coco,
    replace_folder,
    run,
    table,
    table_rows,
    write_page,
)

TRAIN_PICTURES = 3000  # how many pictures the detector sees, whatever the size of the set
PICTURES_SHOWN = 8
LOSSES = ('loss', 'loss_cls', 'loss_bbox', 'loss_mask', 'loss_rpn_cls', 'loss_rpn_bbox')


def coco_summary(data: Path) -> tuple[list[str], int]:
    """Category names of a COCO-format folder in the order of their ids, and the number of pictures to train on."""
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


def config_text(classifier: Path, data: Path | None, names: Path, classes: int, pictures: int) -> str:
    """The demo's config: the mini config with the paths, and for another dataset its classes, schedule and scale.

    Args:
        classifier: Checkpoint the backbone starts from.
        data: The dataset, or None for the drawn one.
        names: File of its classes' names, one in a line. Not in the config: mmengine substitutes what is in braces in a config's text.
        classes: How many there are.
        pictures: How many there are to train on.
    """
    lines = [f"_base_ = '../../{DETECTOR}'", '', f'model = dict(backbone=dict(init_cfg=dict(checkpoint={str(classifier)!r})))']
    if data is None:
        return '\n'.join(lines) + '\n'
    epochs = max(2, round(TRAIN_PICTURES / pictures))
    root = str(data.resolve()) + '/'
    scale = (320, 320)
    return f"""_base_ = '../../{DETECTOR}'

data_root = {root!r}
metainfo = dict(classes={str(names)!r})
scale = {scale}
max_epochs = {epochs}

model = dict(
    backbone=dict(init_cfg=dict(checkpoint={str(classifier)!r})),
    roi_head=dict(bbox_head=dict(num_classes={classes}), mask_head=dict(num_classes={classes})),
)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=scale)
test_pipeline[1].update(scale=scale)
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(
        type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True,
        milestones=[round(max_epochs * 0.7), round(max_epochs * 0.9)], gamma=0.1,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
"""


def report(steps: Steps, metrics: list[dict], measured: dict, agreement: list[str], data: Path | None) -> Path:
    """Write ``report.html`` beside the pictures it shows."""
    names = [(f'{kind} {name}', f'coco/{kind}_{name}', '.4f') for kind in ('bbox', 'segm') for name in ('mAP', 'mAP_50')]
    rows = table_rows(metrics, measured, names)
    print_rows(rows)
    path = steps.folder / 'report.html'
    write_page(
        path,
        'OREPA Mask R-CNN, fine-tuned and re-parameterized',
        f'<p>Data: {html.escape(str(data) if data else "the drawn COCO set (data/coco-mini)")}.</p>',
        table(rows),
        "<p>Latency is the whole <code>test_step</code> on this machine's CPU, the two forms in turn in one process.</p>",
        '<h2>As an ONNX file</h2>',
        '<p>Each row is the file in onnxruntime beside the training form, on a validation picture. Run it without torch with'
        ' <code>tools/deploy/run_onnx.py</code>.</p>',
        f'<pre>{html.escape(chr(10).join(agreement))}</pre>',
        '<h2>Loss</h2>\n<img src="loss.png" alt="loss curve">',
        '<h2>Validation pictures</h2>',
        "<p>Ground truth on the left, the re-parameterized model's predictions on the right.</p>",
        pictures(steps.folder, steps.folder / 'pictures', PICTURES_SHOWN),
        command_list(steps),
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='a dataset in the layout of COCO to fine-tune on (default: a drawn one)')
    args = parser.parse_args()
    start = time.monotonic()
    out = Path('work_dirs/demo')
    folder = ROOT / out
    classifier_dir, detector_dir = out / 'classifier', out / 'detector'
    config, checkpoint = out / 'config.py', detector_dir / 'last.pth'
    if args.data and args.data.resolve().is_relative_to(folder):
        raise StepError(f'{args.data}: lies in {out}, which is written anew; move it somewhere else.')
    names, pictures = coco_summary(args.data) if args.data else ([], 0)  # a wrong dataset ends it here, before anything is written
    replace_folder(folder)
    (folder / 'classes.txt').write_text('\n'.join(names))
    text = config_text(classifier_dir / 'last.pth', args.data, out / 'classes.txt', len(names), pictures)
    (ROOT / config).write_text(text)

    steps = Steps('demo', folder)
    steps.step('draw the datasets', 'demo/make_mini_data.py', 'imagenet', *([] if args.data else ['coco']))
    steps.step('pretrain a narrow OREPA ResNet-18 classifier', 'tools/train.py', CLASSIFIER, '--work-dir', str(classifier_dir))
    steps.step('fine-tune the OREPA Mask R-CNN', 'tools/train.py', str(config), '--work-dir', str(detector_dir))
    metrics = steps.test_both_forms(config, checkpoint, out, out / 'pictures')

    exported = out / 'model.onnx'
    lines = steps.step(
        'write it as an ONNX file and compare that', 'tools/deploy/export_onnx.py', str(config), str(checkpoint), str(exported), '--dynamic'
    )
    agreement = lines[next(i for i, line in enumerate(lines) if line.startswith('size ')) :]
    print('\n'.join(f'  {line}' for line in agreement))

    print('\n[demo] timing the two forms', flush=True)
    measured = measure(ROOT / config, ROOT / checkpoint)
    plot_losses(ROOT / detector_dir, folder / 'loss.png', 'Fine-tuning the OREPA Mask R-CNN', LOSSES)
    path = report(steps, metrics, measured, agreement, args.data)
    print(f'[demo] {(time.monotonic() - start) / 60:.1f} minutes; report: {path}')


if __name__ == '__main__':
    run(main)
