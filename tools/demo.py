#!/usr/bin/env python3
"""Fine-tune a small OREPA Mask R-CNN, test it in both forms, time it, and write a report.

Draws a COCO-format set (or takes yours: ``--data FOLDER``), pretrains a narrow OREPA classifier for a moment, fine-tunes the detector
from it with the stem multiplier, tests it in training form and re-parameterized, and writes ``demo/report.html``. Every step is a
command that the report lists, so each can be run again by hand.
"""

import argparse
import html
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLASSIFIER = 'configs/imagenet/orepa-resnet18-w16_imagenet-mini.py'
DETECTOR = 'configs/coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py'
TRAIN_PICTURES = 3000  # how many pictures the detector sees, whatever the size of the set
PICTURES_SHOWN = 8


class StepError(RuntimeError):
    """A step failed; the message says which, and where its output is."""


@dataclass
class Demo:
    """Runs the steps and remembers their commands."""

    folder: Path
    commands: list[tuple[str, str, float]] = field(default_factory=list)

    def step(self, title: str, *command: str) -> None:
        """Run ``python COMMAND``, its output into a log file, the lines that tell the progress to the terminal."""
        number = len(self.commands) + 1
        shown = shlex.join(['python', *command])
        print(f'\n[demo] step {number}: {title}\n[demo] $ {shown}', flush=True)
        start = time.monotonic()
        log_path = self.folder / 'logs' / f'{number}.log'
        log_path.parent.mkdir(parents=True, exist_ok=True)
        last = ''
        with log_path.open('w') as log:
            process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                cwd=ROOT,
            )
            for line in process.stdout:
                log.write(line)
                last = line.strip() or last
                if any(word in line for word in ('Epoch(', 'Re-parameterized', 'pictures')):
                    print('  ' + line.strip().split(' - INFO - ')[-1][:150], flush=True)
        if process.wait():
            raise StepError(f'step {number} ({title}) failed: {last}\nIts whole output is in {log_path}')
        seconds = time.monotonic() - start
        print(f'[demo] done in {seconds:.0f} s', flush=True)
        self.commands.append((title, shown, seconds))


def coco_summary(data: Path) -> tuple[list[str], int]:
    """Category names of a COCO-format folder in the order of their ids, and the number of pictures to train on."""
    path = data / 'annotations' / 'instances_train2017.json'
    try:
        content = json.loads(path.read_text())
        categories = sorted(content['categories'], key=lambda category: category['id'])
        return [category['name'] for category in categories], len(content['images'])
    except FileNotFoundError:
        raise StepError(
            f'{path}: no such file. DATA is a folder in the layout of COCO: annotations/instances_{{train,val}}2017.json, '
            'train2017/ and val2017/.'
        ) from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise StepError(f'{path}: not a COCO annotation file ({type(error).__name__}: {error}).') from None


def config_text(data: Path | None, classifier: Path) -> str:
    """The demo's config: the mini config with the paths, and for another dataset its classes, schedule and scale."""
    lines = [f"_base_ = '../{DETECTOR}'", '', f'model = dict(backbone=dict(init_cfg=dict(checkpoint={str(classifier)!r})))']
    if data is None:
        return '\n'.join(lines) + '\n'
    classes, pictures = coco_summary(data)
    if not pictures or not classes:
        raise StepError(f'{data}: the training set lists no pictures or no categories.')
    epochs = max(2, round(TRAIN_PICTURES / pictures))
    root = str(data.resolve()) + '/'
    scale = (320, 320)
    return f"""_base_ = '../{DETECTOR}'

data_root = {root!r}
metainfo = dict(classes={tuple(classes)!r})
scale = {scale}
max_epochs = {epochs}

model = dict(
    backbone=dict(init_cfg=dict(checkpoint={str(classifier)!r})),
    roi_head=dict(bbox_head=dict(num_classes={len(classes)}), mask_head=dict(num_classes={len(classes)})),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
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


def measure(config: Path, checkpoint: Path, runs: int = 30) -> dict:
    """Parameters, largest output difference and latency of the two forms on one picture, timed in turn in one process."""
    import statistics

    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    import orepa_mm
    from orepa_mm.engine.checkpoint import read_checkpoint, state_dict_of
    from orepa_mm.engine.outputs import dense_outputs, largest_difference

    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    from mmdet.registry import MODELS

    models = []
    state = state_dict_of(read_checkpoint(checkpoint))
    for _ in range(2):
        model = MODELS.build(cfg.model)
        model.load_state_dict(state)
        models.append(model.eval())
    orepa_mm.reparameterize(models[1])
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    batch = next(iter(Runner.build_dataloader(cfg.test_dataloader)))
    outputs = dense_outputs(models[0], batch)
    expected = outputs()
    with orepa_mm.reparam.reparameterized(models[0]):
        difference = largest_difference(expected, outputs())
    times = ([], [])
    with torch.no_grad():
        for run in range(runs + 3):
            for model, record in zip(models, times, strict=True):
                start = time.perf_counter()
                model.test_step(batch)
                if run >= 3:
                    record.append(1000 * (time.perf_counter() - start))
    return dict(
        parameters=[sum(p.numel() for p in model.parameters()) for model in models],
        difference=difference,
        latency=[statistics.median(record) for record in times],
        input=tuple(batch['inputs'][0].shape),
    )


def plot_losses(work_dir: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    rows = [row for row in rows if 'loss' in row]
    figure, axes = plt.subplots(figsize=(8, 4), layout='constrained')
    for name in ('loss', 'loss_cls', 'loss_bbox', 'loss_mask', 'loss_rpn_cls', 'loss_rpn_bbox'):
        axes.plot([row['step'] for row in rows], [row[name] for row in rows], label=name, linewidth=2.2 if name == 'loss' else 1.2)
    axes.set(xlabel='iteration', ylabel='loss', title='Fine-tuning the OREPA Mask R-CNN', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def report(demo: Demo, metrics: list[dict], measured: dict, data: Path | None) -> Path:
    """Write ``report.html`` beside the pictures it shows."""
    rows = [
        (f'{kind} {name}', *(f'{m[f"coco/{kind}_{name}"]:.4f}' for m in metrics)) for kind in ('bbox', 'segm') for name in ('mAP', 'mAP_50')
    ]
    rows += [
        ('parameters', *(f'{count / 1e6:.3f} M' for count in measured['parameters'])),
        (f'latency, one picture {"x".join(map(str, measured["input"]))}, median', *(f'{ms:.1f} ms' for ms in measured['latency'])),
        ('largest output difference, of the output scale', '', f'{measured["difference"]:.1e}'),
    ]
    table = '\n'.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>' for row in rows)
    for row in (('', 'training form', 're-parameterized'), *rows):
        print(f'  {row[0]:<52}{row[1]:>16}{row[2]:>18}')
    pictures = sorted((demo.folder / 'pictures').glob('*.*'))[:PICTURES_SHOWN]
    shown = '\n'.join(f'<img src="pictures/{html.escape(path.name)}" alt="{html.escape(path.name)}">' for path in pictures)
    steps = '\n'.join(f'<li>{html.escape(title)} ({s:.0f} s)<pre>{html.escape(command)}</pre></li>' for title, command, s in demo.commands)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>orepa_mm demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left }} pre {{ background: #f4f4f4; padding: .5rem; overflow-x: auto; font-size: 13px }}
.pictures {{ display: grid; grid-template-columns: 1fr 1fr; gap: .6rem }} img {{ width: 100% }}
</style>
<h1>OREPA Mask R-CNN, fine-tuned and re-parameterized</h1>
<p>Data: {html.escape(str(data) if data else 'the drawn COCO set (data/coco-mini)')}.</p>
<table><tr><th></th><th>training form</th><th>re-parameterized</th></tr>
{table}
</table>
<p>Latency is the whole <code>test_step</code> on this machine's CPU, the two forms in turn in one process.</p>
<h2>Loss</h2>
<img src="loss.png" alt="loss curve">
<h2>Validation pictures</h2>
<p>Ground truth on the left, the re-parameterized model's predictions on the right.</p>
<div class="pictures">
{shown}
</div>
<h2>Commands</h2>
<ol>
{steps}
</ol>
</html>
"""
    path = demo.folder / 'report.html'
    path.write_text(page)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='a dataset in the layout of COCO to fine-tune on (default: a drawn one)')
    args = parser.parse_args()
    start = time.monotonic()
    folder = ROOT / 'demo'
    classifier_dir, detector_dir = Path('demo/work/classifier'), Path('demo/work/detector')
    config, checkpoint = Path('demo/config.py'), detector_dir / 'last.pth'
    text = config_text(args.data, classifier_dir / 'last.pth')  # a wrong dataset ends it here, before anything is written
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (ROOT / config).write_text(text)

    demo = Demo(folder)
    demo.step('draw the datasets', 'tools/make_mini_data.py', 'imagenet', *([] if args.data else ['coco']))
    demo.step('pretrain a narrow OREPA ResNet-18 classifier', 'tools/train.py', CLASSIFIER, '--work-dir', str(classifier_dir))
    demo.step('fine-tune the OREPA Mask R-CNN', 'tools/train.py', str(config), '--work-dir', str(detector_dir))
    test = ('tools/test.py', str(config), str(checkpoint), '--work-dir')
    metrics = [folder / 'metrics_training_form.json', folder / 'metrics_reparameterized.json']
    relative = [str(path.relative_to(ROOT)) for path in metrics]
    demo.step('test it in training form', *test, 'demo/work/test_training_form', '--no-reparameterize', '--metrics', relative[0])
    pictures = ('--show-dir', 'demo/pictures')
    demo.step('test it re-parameterized', *test, 'demo/work/test_reparameterized', '--reparameterize', '--metrics', relative[1], *pictures)

    print('\n[demo] timing the two forms', flush=True)
    measured = measure(ROOT / config, ROOT / checkpoint)
    plot_losses(ROOT / detector_dir, folder / 'loss.png')
    path = report(demo, [json.loads(path.read_text()) for path in metrics], measured, args.data)
    print(f'[demo] {(time.monotonic() - start) / 60:.1f} minutes; report: {path}')


if __name__ == '__main__':
    try:
        main()
    except StepError as error:
        sys.exit(f'[demo] error: {error}')
