#!/usr/bin/env python3
"""Draw what a model predicts in training form and re-parameterized, and the difference between them, magnified.

    python tools/analysis_tools/compare_forms.py CONFIG CHECKPOINT pictures/*.jpg forms.png

A row for each picture: the five best classes of a classifier, the boxes and masks of a detector, the label map of a segmentor. The last
column is what the predictions are made of, not the drawing: the probabilities of classes, or for each pixel the scores of what was found
there.
"""

import argparse
import math
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from common import UsageError, add_cfg_options, load_config, run  # noqa: E402
from progress import track  # noqa: E402

import orepa_mm  # noqa: E402
from orepa_mm.deploy.agreement import match  # noqa: E402
from orepa_mm.deploy.loading import load_model  # noqa: E402
from orepa_mm.deploy.pictures import read_pixels  # noqa: E402
from orepa_mm.files import check_writable, replacing  # noqa: E402
from orepa_mm.registry import type_name  # noqa: E402
from orepa_mm.reparam import plan_swaps  # noqa: E402

TOP = 5
FORMS = ('training form', 're-parameterized')


@dataclass
class Pair:
    """What both forms predict for a picture.

    Attributes:
        path: Of the picture.
        picture: uint8 [H, W, 3], RGB.
        samples: The toolbox's data samples, of the training form and re-parameterized.
        difference: Of the classes' probabilities [classes], or for each pixel [H, W] the largest one of a class's score there.
        words: The largest differences, to be read.
    """

    path: Path
    picture: np.ndarray
    samples: tuple[Any, Any]
    difference: np.ndarray
    words: str

    @property
    def largest(self) -> float:
        return float(self.difference.max(initial=0))


def test_pipeline(cfg: Config) -> Compose:
    """The config's test pipeline for a picture without annotations."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset.dataset
    steps = [step for step in dataset.get('pipeline') or () if 'Annotations' not in type_name(step['type'])]
    if not steps:
        raise UsageError(f'{cfg.filename}: has no test pipeline (test_dataloader.dataset.pipeline), which says how pictures are prepared.')
    return Compose(steps)


def compare_forms(cfg: Config, checkpoint: Path, pictures: list[Path]) -> tuple[BaseModel, list[Pair]]:
    """The predictions of a checkpoint in both forms, through the config's test pipeline and the stock ``test_step``.

    Args:
        cfg: Of mmdet, mmseg or mmpretrain.
        checkpoint: Of this config, in training form.
        pictures: Files.

    Returns:
        The model in training form, and a pair for each picture.

    Raises:
        UsageError: When a picture cannot be read, or the config has no test pipeline.
        CheckpointError: When the checkpoint does not fit, or has no layer to re-parameterize.
    """
    pixels = [read_pixels(path) for path in pictures]
    training = load_model(cfg, checkpoint)
    if not plan_swaps(training):
        raise UsageError(f'{cfg.filename}: the model has nothing to re-parameterize: no layer with branches.')
    plain = orepa_mm.reparameterize(deepcopy(training))
    prepare, compare = test_pipeline(cfg), COMPARISONS[cfg.default_scope]
    pairs = []
    for path, picture in track(list(zip(pictures, pixels, strict=True)), 'predicting'):
        batch = pseudo_collate([prepare(dict(img_path=str(path), img_id=0))])
        with torch.no_grad():
            samples = tuple(model.test_step(deepcopy(batch))[0] for model in (training, plain))
        pairs.append(Pair(path, picture, samples, *compare(*samples)))
    return training, pairs


def compare_classes(a: Any, b: Any) -> tuple[np.ndarray, str]:
    difference = (a.pred_score - b.pred_score).abs()
    count = min(TOP, len(difference))
    best = [sample.pred_score.topk(count).indices.tolist() for sample in (a, b)]
    words = f'of a probability {written(difference.max())}; the best {count} are {"the same" if best[0] == best[1] else "others"}'
    return difference.numpy(), words


def compare_labels(a: Any, b: Any) -> tuple[np.ndarray, str]:
    logits = [sample.seg_logits.data.float() for sample in (a, b)]
    scores = [each.softmax(0) if len(each) > 1 else each for each in logits]  # of one class they are probabilities
    difference = (scores[0] - scores[1]).abs().amax(0)
    changed = int((a.pred_sem_seg.data != b.pred_sem_seg.data).sum())
    return difference.numpy(), f'of a probability {written(difference.max())}; {changed} of {difference.numel()} pixels have another label'


def compare_instances(a: Any, b: Any) -> tuple[np.ndarray, str]:
    found = [sample.pred_instances for sample in (a, b)]
    height, width = a.ori_shape
    difference = torch.zeros(height, width)
    for label in torch.cat([each.labels for each in found]).unique():
        first, second = (score_map(each[each.labels == label], height, width) for each in found)
        difference = torch.maximum(difference, (first - second).abs())
    pairs = match(found[0].bboxes, found[0].labels, found[1].bboxes, found[1].labels)
    scores, boxes = (
        (getattr(found[0], name)[pairs[:, 0]] - getattr(found[1], name)[pairs[:, 1]]).abs().flatten() for name in ('scores', 'bboxes')
    )
    largest = [float(values.max()) if len(values) else 0.0 for values in (scores, boxes)]
    words = f'of a score {written(largest[0])}, of a corner {written(largest[1])} pixels; {len(found[0])} and {len(found[1])} boxes'
    if 'masks' in found[0]:
        masks = [torch.as_tensor(each.masks)[pairs[:, side]] for side, each in enumerate(found)]
        words += f'; {int((masks[0] != masks[1]).sum())} pixels of masks'
    return difference.numpy(), words


def written(value: float) -> str:
    return f'{value:.1e}' if value else '0'


def score_map(instances: Any, height: int, width: int) -> Tensor:
    """For each pixel [H, W] the best score of the masks, or else boxes, that cover it; a box's edge covers pixels in part."""
    best = torch.zeros(height, width)
    for index in range(len(instances)):
        if 'masks' in instances:
            covered = torch.as_tensor(instances.masks[index]).float()
        else:
            x1, y1, x2, y2 = instances.bboxes[index]
            covered = overlap(y1, y2, height)[:, None] * overlap(x1, x2, width)
        best = torch.maximum(best, instances.scores[index] * covered)
    return best


def overlap(start: Tensor, end: Tensor, count: int) -> Tensor:
    """How much of each pixel [count] of a line lies between two points."""
    place = torch.arange(count)
    return (torch.minimum(end, place + 1) - torch.maximum(start, place)).clamp(0, 1)


COMPARISONS = dict(mmpretrain=compare_classes, mmseg=compare_labels, mmdet=compare_instances)


def names_and_palette(model: BaseModel, pairs: list[Pair]) -> dict[str, list]:
    """Names and colours of the classes that are predicted: the checkpoint's, and where it holds none numbers and drawn colours."""
    samples = [sample for pair in pairs for sample in pair.samples]
    if 'pred_instances' in samples[0]:
        count = 1 + max((int(sample.pred_instances.labels.max()) for sample in samples if len(sample.pred_instances)), default=0)
    else:
        count = len(samples[0].pred_score) if 'pred_score' in samples[0] else max(2, len(samples[0].seg_logits.data))
    meta = getattr(model, 'dataset_meta', None) or {}
    names, palette = (list(meta[key]) if isinstance(meta.get(key), list | tuple) else [] for key in ('classes', 'palette'))
    drawn = np.random.default_rng(0).integers(32, 256, (count, 3)).tolist()
    return dict(
        classes=[str(name) for name in names] + [f'class {label}' for label in range(len(names), count)],
        palette=[tuple(colour) for colour in (*palette, *drawn[len(palette) :])],
    )


def paint_labels(pair: Pair, meta: dict[str, list], score_thr: float) -> list[np.ndarray]:
    """Both predictions of a segmentor or detector, painted by the toolbox's own visualizer."""
    if 'pred_instances' in pair.samples[0]:
        from mmdet.visualization import DetLocalVisualizer

        thin = min(pair.picture.shape[:2]) < 400
        visualizer, options = DetLocalVisualizer(name='compare_forms', line_width=1 if thin else 3), dict(pred_score_thr=score_thr)
    else:
        from mmseg.visualization import SegLocalVisualizer

        visualizer, options = SegLocalVisualizer(name='compare_forms', alpha=0.6), dict(with_labels=False)
    visualizer.dataset_meta = meta
    painted = []
    for sample in pair.samples:
        np.random.seed(0)  # mmdet's visualizer shades its masks at random
        visualizer.add_datasample('', pair.picture, sample, draw_gt=False, **options)
        painted.append(visualizer.get_image())
    return painted


def magnification(largest: float) -> float:
    """The power of ten that brings a difference to between 0.1 and 1; 1 for none."""
    return 10.0 ** math.floor(-math.log10(largest)) if 0 < largest < 1 else 1.0


def draw(pairs: list[Pair], meta: dict[str, list], path: Path, score_thr: float = 0.3) -> None:
    """A row for each pair: both predictions and their difference, beside the picture where they are bars."""
    as_bars = 'pred_score' in pairs[0].samples[0]
    columns = 4 if as_bars else 3
    height, width = np.mean([pair.picture.shape[:2] for pair in pairs], axis=0)
    row_height = 2.6 if as_bars else min(6.0, 4.2 * height / width + 0.5)
    figure = Figure((4.4 * columns, row_height * len(pairs)), layout='constrained')
    for row, pair in zip(figure.subplots(len(pairs), columns, squeeze=False), pairs, strict=True):
        factor = magnification(pair.largest)
        magnified = f' x {factor:.0e}' if factor > 1 else ''
        title = f'difference{magnified}, largest {written(pair.largest)}' if pair.largest else 'no difference'
        shown = [pair.picture] if as_bars else paint_labels(pair, meta, score_thr)
        for panel, picture in zip(row, shown, strict=False):
            panel.imshow(picture)
        if as_bars:
            scores = [sample.pred_score.numpy() for sample in pair.samples]
            best = [np.argsort(-each)[:TOP].tolist() for each in scores]
            for panel, labels, values in zip(row[1:], (*best, best[0]), (*scores, factor * pair.difference), strict=True):
                bars(panel, labels, values, meta['classes'])
        else:
            image = row[-1].imshow(factor * pair.difference, cmap='magma', vmin=0, vmax=factor * pair.largest or 1)
            figure.colorbar(image, ax=row[-1], shrink=0.8)
        for panel in row[:1] if as_bars else row:
            panel.set(xticks=(), yticks=())
        for panel, text in zip(row[-3:], (*FORMS, title), strict=True):
            panel.set_title(text)
        row[0].set_ylabel(pair.path.name[-24:], fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=90, format='png')


def bars(panel: Any, labels: list[int], values: np.ndarray, classes: list[str]) -> None:
    """Bars of some classes, the first on top."""
    panel.barh(range(len(labels)), values[labels], color=[f'C{label % 10}' for label in labels])
    panel.set(xlim=(0, 1), yticks=range(len(labels)), yticklabels=[classes[label] for label in labels])
    panel.invert_yaxis()
    panel.grid(axis='x', alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='of this config, in training form')
    parser.add_argument('pictures', type=Path, nargs='+', metavar='PICTURE')
    parser.add_argument('out', type=Path, metavar='OUT.png')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a box that is drawn (default: 0.3)')
    add_cfg_options(parser)
    args = parser.parse_args()
    check_writable(args.out)
    cfg = load_config(args)
    model, pairs = compare_forms(cfg, args.checkpoint, args.pictures)
    for pair in pairs:
        print(f'{pair.path}: largest difference {pair.words}')
    draw(pairs, names_and_palette(model, pairs), args.out, args.score_thr)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    run(main)
