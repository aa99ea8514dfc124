"""What demo/demo.py and demo/pipeline.py share: running steps as commands, measuring the two forms, and an HTML page about it."""

import argparse
import copy
import json
import logging
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from jinja2 import Environment, FileSystemLoader

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools')]
from coco_files import read_coco  # noqa: E402, F401  for demo.py
from common import UsageError, run  # noqa: E402, F401  run is for both programs
from picture_errors import PictureError  # noqa: E402

from orepa_mm.files import replacing  # noqa: E402

CLASSIFIER = 'configs/imagenet/orepa-resnet18-w16_imagenet-mini.py'
DETECTOR = 'configs/coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py'
SEGMENTOR = 'configs/cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py'
LOGS = 'logs'  # made by the first step of every run
FORMS = ('training form', 're-parameterized')


class StepError(UsageError):
    """A step failed; the message says which, and where its output is."""


def replace_folder(folder: Path) -> None:
    """An empty folder in place of what an earlier run left there; anything else there is an error."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOGS).is_dir():
        raise StepError(f'{folder}: holds files of somebody else; move them away.')
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@dataclass
class Steps:
    """Runs the steps of a program and remembers their commands."""

    name: str
    folder: Path
    commands: list[tuple[str, str, float]] = field(default_factory=list)

    def step(self, title: str, *command: str) -> list[str]:
        """Run ``python COMMAND``, its output into a log file, the lines that tell the progress to the terminal.

        Returns:
            The lines of the output.
        """
        number = len(self.commands) + 1
        shown = shlex.join(['python', *command])
        print(f'\n[{self.name}] step {number}: {title}\n[{self.name}] $ {shown}', flush=True)
        start = time.monotonic()
        log_path = self.folder / LOGS / f'{number}.log'
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
                if any(word in line for word in ('Epoch(', 'Iter(', 'Re-parameterized', 'pictures')):
                    print('  ' + line.strip().split(' - INFO - ')[-1][:150], flush=True)
        if process.wait():
            raise StepError(f'step {number} ({title}) failed: {last.removeprefix("error: ")} (its whole output is in {log_path})')
        seconds = time.monotonic() - start
        print(f'[{self.name}] done in {seconds:.0f} s', flush=True)
        self.commands.append((title, shown, seconds))
        return log_path.read_text().splitlines()

    def test_both_forms(
        self, config: Path, checkpoint: Path, work: Path, pictures: Path | None = None, predictions: Path | None = None
    ) -> list[dict]:
        """The metrics of a checkpoint in training form and re-parameterized.

        Args:
            config: Of the checkpoint.
            checkpoint: In training form.
            work: Folder for metrics and logs.
            pictures: Folder where the predictions of the re-parameterized form are painted.
            predictions: Where they are kept, as ``--out`` of tools/test.py.
        """
        metrics = []
        for title, option in zip(FORMS, ('--no-reparameterize', '--reparameterize'), strict=True):
            path = work / f'metrics_{option.strip("-")}.json'
            shown = []
            if option == '--reparameterize':
                shown = ['--show-dir', str(pictures)] * bool(pictures) + ['--out', str(predictions)] * bool(predictions)
            test = ('tools/test.py', str(config), str(checkpoint), '--work-dir', str(work / f'test_{option.strip("-")}'))
            self.step(f'test {config.stem}: {title}', *test, option, '--metrics', str(path), *shown)
            metrics.append(json.loads((ROOT / path).read_text()))
        return metrics


def measure(config: Path, checkpoint: Path, runs: int = 30) -> dict:
    """Of the two forms of a network: parameters, milliseconds of a test image and of a training step, and how far layers differ.

    They take turns in one process. Re-parameterized it is the stock network, which is what its training step is compared with.
    """
    import torch
    from common import load_config
    from mmengine.runner import Runner

    import orepa_mm
    from orepa_mm.deploy.loading import build_model, load_model
    from orepa_mm.deploy.stock_config import stock_config
    from orepa_mm.reparam import plan_swaps
    from orepa_mm.reparam.comparison import LayerComparison

    cfg = load_config(argparse.Namespace(config=str(config), cfg_options=None, work_dir=None, launcher='none', local_rank=0))
    models = [load_model(cfg, checkpoint) for _ in FORMS]
    orepa_mm.reparameterize(models[1])
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False, batch_size=1)
    batch = next(iter(Runner.build_dataloader(cfg.test_dataloader)))
    comparison = LayerComparison(plan_swaps(models[0]))
    with torch.no_grad():
        models[0].test_step(batch)
        comparison.stop()
        latency = in_turn([lambda model=model: model.test_step(batch) for model in models], runs)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    train_batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
    logging.disable(logging.INFO)  # mmengine names the settings of every parameter
    steps = []
    for model in (models[0], build_model(stock_config(cfg))):
        wrapper = Runner.build_optim_wrapper(SimpleNamespace(model=model.train()), cfg.optim_wrapper)
        steps.append(lambda model=model, wrapper=wrapper: model.train_step(copy.deepcopy(train_batch), wrapper))
    return dict(
        parameters=[sum(p.numel() for p in model.parameters()) for model in models],
        difference=max(found.largest for found in comparison.differences.values()),
        latency=latency,
        step=in_turn(steps, max(1, runs // 3)),
        input=tuple(batch['inputs'][0].shape),
        batch=len(train_batch['inputs']),
    )


def in_turn(calls: list[Callable[[], object]], runs: int) -> list[float]:
    """Median milliseconds of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(runs + 3):
        for call, record in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if number >= 3:
                record.append(1000 * (time.perf_counter() - start))
    return [statistics.median(record) for record in times]


def plot_losses(work_dir: Path, out: Path, title: str, names: tuple[str, ...] = ('loss',)) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    rows = [row for row in rows if 'loss' in row]
    figure, axes = plt.subplots(figsize=(8, 4), layout='constrained')
    for name in names:
        axes.plot([row['step'] for row in rows], [row[name] for row in rows], label=name, linewidth=2.2 if name == 'loss' else 1.2)
    axes.set(xlabel='iteration', ylabel='loss', title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(ncols=2)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def table_rows(metrics: list[dict], measured: dict, names: Iterable[tuple[str, str, str]]) -> list[tuple[str, ...]]:
    """Rows of title, training form and re-parameterized; ``names``: title, key in the metrics, format."""
    # mmdet logs no mAP where nothing was detected
    rows = [(title, *(format(m[key], form) if key in m else 'none' for m in metrics)) for title, key, form in names]
    size = 'x'.join(map(str, measured['input']))
    return rows + [
        ('parameters', *(f'{count / 1e6:.3f} M' for count in measured['parameters'])),
        (f'test of one image {size}', *(f'{ms:.1f} ms' for ms in measured['latency'])),
        (f'training step of {measured["batch"]} images', *(f'{ms:.0f} ms' for ms in measured['step'])),
        ("largest difference of a layer's output, of its scale", '', f'{measured["difference"]:.1e}'),
    ]


def print_rows(rows: list[tuple[str, ...]], title: str = '') -> None:
    for row in ((title, *FORMS), *rows):
        print(f'  {row[0]:<52}{row[1]:>16}{row[2]:>18}')


@dataclass
class Section:
    """What a page says of one network.

    Attributes:
        rows: As :func:`table_rows` gives them.
        loss: File of its loss curve, beside the page.
        images: File, beside the page, and caption of each that is shown.
        about_images: A sentence before them.
        onnx: Rows of the comparison with the exported file, the heading first.
        title: Where the page has several.
    """

    rows: list[tuple[str, ...]]
    loss: str
    images: list[tuple[str, str]] = field(default_factory=list)
    about_images: str = ''
    onnx: list[list[str]] = field(default_factory=list)
    title: str = ''


def images(folder: Path, below: Path, count: int, errors: dict[str, PictureError]) -> list[tuple[str, str]]:
    """File, relative to ``folder``, and caption of the worst images in ``below``; ``errors`` by file stem."""

    def error_of(path: Path) -> PictureError:
        inner = path.name.removeprefix('test_').rpartition('_')[0]  # mmseg's visualizer writes test_<name>_<step>.png
        return errors.get(path.stem) or errors.get(Path(inner).stem) or PictureError(0, 'not known')

    found = sorted(path for path in below.rglob('*.*') if path.suffix in ('.png', '.jpg'))
    found.sort(key=lambda path: -error_of(path).error)  # stable: else by name
    named = [(path, error_of(path)) for path in found[:count]]
    return [(path.relative_to(folder).as_posix(), f'{path.name}: error {error.error:.2f}, {error.words}') for path, error in named]


def write_page(path: Path, title: str, about: list[str], sections: list[Section], steps: Steps, next_command: str = '') -> None:
    """An HTML page of these parts."""
    template = Environment(loader=FileSystemLoader(ROOT / 'demo'), autoescape=True, trim_blocks=True).get_template('report.html.jinja')
    page = template.render(title=title, about=about, sections=sections, forms=FORMS, commands=steps.commands, next_command=next_command)
    with replacing(path) as partial:
        partial.write_text(page + '\n')
