"""How wrong a prediction is, picture by picture, as no metric over a whole dataset tells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

SCORE, OVERLAP = 0.3, 0.5  # a box of a lower score counts for nothing, one with less IoU for another object


@dataclass
class PictureError:
    """Of one picture.

    Attributes:
        error: 0 where all is right, 1 where nothing is.
        words: What it is made of.
    """

    error: float
    words: str


def object_errors(cfg: Config, predictions: Path) -> dict[str, PictureError]:
    """Of a detector, one minus the F1 score of each picture's objects; those the annotations ignore do not count.

    An object is found by the best box of its class with a score of 0.3 or more and an IoU of 0.5 or more, of masks where there are.

    Args:
        cfg: With the COCO dataset that was tested on.
        predictions: What ``--out`` of tools/test.py wrote.

    Returns:
        By the stem of the picture's file.
    """
    import mmengine
    from pycocotools import mask as coco_mask

    by_id = {each['img_id']: each for each in mmengine.load(predictions)}
    errors = {}
    for info in _data(cfg):
        size = info['height'], info['width']
        found = by_id[info['img_id']]['pred_instances']
        kept = np.flatnonzero(found['scores'].numpy() >= SCORE)
        kept = kept[np.argsort(-found['scores'].numpy()[kept])]
        labels = found['labels'].numpy()[kept]
        truth = [each for each in info['instances'] if not each['ignore_flag']]
        ious = np.zeros((len(kept), len(truth)))
        if len(kept) and truth:
            if 'masks' in found:
                drawn = [_run_lengths(each['mask'], *size) for each in truth]
                ious = coco_mask.iou([found['masks'][index] for index in kept], drawn, [0] * len(truth))
            else:
                boxes = (found['bboxes'].numpy()[kept], np.array([each['bbox'] for each in truth]))
                ious = coco_mask.iou(*(np.hstack([box[:, :2], box[:, 2:] - box[:, :2]]).astype(float) for box in boxes), [0] * len(truth))
        true_labels = [each['bbox_label'] for each in truth]
        hits = matched(np.asarray(ious), labels, np.array(true_labels, int))
        missed, wrong = len(truth) - hits, len(kept) - hits
        error = 1 - 2 * hits / (len(truth) + len(kept)) if truth or len(kept) else 0.0
        words = f'{missed} of {len(truth)} objects missed, {wrong} of {len(kept)} boxes wrong'
        errors[Path(info['img_path']).stem] = PictureError(error, words)
    return errors


def matched(ious: np.ndarray, labels: np.ndarray, true_labels: np.ndarray) -> int:
    """How many of the boxes, the best first, find an object of their class that no better one has found; ``ious`` is [boxes, objects]."""
    free = np.ones(len(true_labels), bool)
    for overlaps, label in zip(ious, labels, strict=True):
        overlaps = np.where(free & (true_labels == label), overlaps, 0)
        if overlaps.max(initial=0) >= OVERLAP:
            free[overlaps.argmax()] = False
    return int((~free).sum())


def _run_lengths(outline: Any, height: int, width: int) -> dict:
    """A COCO annotation's polygons or run lengths as compressed run lengths."""
    from pycocotools import mask as coco_mask

    if isinstance(outline, list):
        return coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    return coco_mask.frPyObjects(outline, height, width) if isinstance(outline['counts'], list) else outline


def label_errors(cfg: Config, folder: Path) -> dict[str, PictureError]:
    """Of a segmentor, the share of each picture's pixels with a wrong label; those the label map ignores do not count.

    Args:
        cfg: With the dataset of mmseg that was tested on.
        folder: Of the label maps that ``--out`` of tools/test.py wrote.

    Returns:
        By the stem of the picture's file.
    """
    import mmcv

    errors = {}
    for info in _data(cfg):
        stem = Path(info['img_path']).stem
        truth, found = (mmcv.imread(str(path), 'unchanged') for path in (info['seg_map_path'], folder / f'{stem}.png'))
        counted = truth != 255
        wrong = float((truth != found)[counted].mean()) if counted.any() else 0.0
        errors[stem] = PictureError(wrong, 'share of pixels with a wrong label')
    return errors


def _data(cfg: Config) -> list[dict]:
    """What the test dataset knows of each picture."""
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    return [dataset.get_data_info(index) for index in range(len(dataset))]
