"""Boxes without branches on how many there are: what mmdet's heads do after their last layer, in operators a graph can hold.

The arithmetic is the stock layers' own (priors, box coders, activations); only sorting, thresholding and suppression are written here.
"""

from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torchvision.ops import nms

from ...errors import ExportError
from ...registry import type_name

CANDIDATES = 10_000  # of a detector of many classes the best are looked at; the time of suppression grows with the square
NMS_SETTINGS = {'type', 'iou_threshold', 'iou_thr', 'class_agnostic', 'split_thr'}  # of mmcv's batched_nms; the last is for memory only


class Candidates(NamedTuple):
    """Boxes before suppression: ``boxes`` [K, 4] xyxy, their ``scores``, ``labels`` and ``levels`` of the pyramid [K]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    levels: Tensor


class Suppression:
    """Non-maximum suppression within groups, as mmcv's ``batched_nms`` does it by ``nms`` of a test config; ``most`` boxes are kept."""

    def __init__(self, settings: dict[str, Any] | None, most: int) -> None:
        settings = dict(settings or {})
        others = settings.keys() - NMS_SETTINGS
        kind = type_name(settings.get('type', 'nms'))
        if kind != 'nms' or others:
            what = kind if kind != 'nms' else ', '.join(sorted(others))
            raise ExportError(
                f"test_cfg.nms: ONNX has plain non-maximum suppression only, not {what}; set type='nms' and its iou_threshold."
            )
        self.threshold = float(settings.get('iou_threshold', settings.get('iou_thr', 0.5)))
        self.agnostic = bool(settings.get('class_agnostic'))
        self.most = most

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        """Indices of the boxes that stay, the best first; K may be 0."""
        if not self.agnostic:
            # Each group is moved to a place of its own. A zero more, as nothing has no maximum.
            span = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
            boxes = boxes + (groups.to(boxes) * span).unsqueeze(1)
        if self.most <= 0:
            return nms(boxes, scores, self.threshold)
        # Worse ones suppress none of these, so the result is the same as long as enough of them stay.
        scores, best = scores.topk(torch.sym_min(self.most + CANDIDATES, scores.shape[0]))
        return best[nms(boxes[best], scores, self.threshold)[: self.most]]


def check_stock(head: nn.Module, base: type, *methods: str) -> None:
    """Raise :class:`.ExportError` where a model or head has methods of its own for what is done here."""
    own = [name for name in methods if getattr(type(head), name, None) is not getattr(base, name)]
    if own:
        raise ExportError(
            f'{type(head).__name__}: makes boxes in a way of its own ({", ".join(own)}), which has no translation; '
            f'what leaves this to {base.__name__} goes out.'
        )


def candidates(
    head: BaseModule, outputs: tuple[list[Tensor], ...], shape: tuple[int, int], settings: dict[str, Any], threshold: float = -1
) -> Candidates:
    """The best boxes of each level of a dense head's outputs for one picture: scores, deltas and, where it has them, factors of the scores.

    Boxes are clipped to ``shape``; ``threshold`` is of the scores before they meet their factors.
    """
    count, smallest = settings.get('nms_pre', -1), settings.get('min_bbox_size', -1)
    maps, deltas, *factors = outputs
    priors = head.prior_generator.grid_priors([level.shape[-2:] for level in maps], dtype=maps[0].dtype, device=maps[0].device)
    found = []
    for level, (scores, delta, prior) in enumerate(zip(maps, deltas, priors, strict=True)):
        scores = scores[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
        scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]
        classes = scores.shape[1]
        delta = delta[0].permute(1, 2, 0).reshape(-1, head.bbox_coder.encode_size)
        scores = scores.flatten()
        scores, best = scores.topk(torch.sym_min(count, scores.shape[0]) if count > 0 else scores.shape[0])
        place = best // classes
        boxes = head.bbox_coder.decode(prior[place], delta[place], max_shape=shape)
        # Chosen level by level: what is left has a size without a formula, with which the exporter is much faster.
        keep = scores > threshold
        if smallest >= 0:
            keep = keep & (boxes[:, 2:] - boxes[:, :2] > smallest).all(1)
        if factors:
            scores = scores * factors[0][level][0].flatten().sigmoid()[place]
        keep = keep.nonzero().squeeze(1)
        found.append(Candidates(boxes[keep], scores[keep], best[keep] % classes, torch.full_like(keep, level)))
    return Candidates(*map(torch.cat, zip(*found, strict=True)))
