"""Whether an exported network predicts what the training form does, on real pictures."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from ..registry import TOOLBOXES, toolbox_of
from ..reparam.comparison import largest_difference
from .batches import batch_of
from .formats import Run
from .networks import DeployNetwork

TOLERANCE = 1e-4  # of an output's scale: float32 through other kernels


@dataclass
class Agreement:
    """What came out of a call: in words, the largest difference of the scale (None for labels), and the problem, '' for none."""

    found: str
    largest: float | None
    problem: str = ''


@torch.no_grad()
def stock_predictions(model: BaseModel, pictures: Tensor) -> list[Any]:
    """What the toolbox's own ``test_step`` predicts for pictures as the exported network takes them, in their pixels."""
    return model.test_step(batch_of(toolbox_of(type(model), TOOLBOXES), pictures))


def median_ms(run: Callable[[], object], count: int) -> float:
    """Milliseconds of the median of ``count`` calls."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


@torch.no_grad()
def compare(reference: BaseModel, network: DeployNetwork, run: Run, pictures: Tensor) -> Agreement:
    """Compare what an exported network (``network``, which ``run`` runs) and the training form's stock code predict for ``pictures``."""
    return COMPARISONS[network.task](reference, network, run(pictures), pictures)


def _compare_scores(reference: BaseModel, network: DeployNetwork, outputs: tuple[Tensor, ...], pictures: Tensor) -> Agreement:
    batch = reference.data_preprocessor(batch_of(toolbox_of(type(reference), TOOLBOXES), pictures), False)
    expected = reference(**batch, mode='tensor')
    expected = expected.softmax(1) if network.softmax else expected
    (scores,) = outputs
    labels = scores.argmax(1)
    _, wrong = differing_labels(expected, labels)
    problem = f'{wrong} of {len(labels)} labels differ' if wrong else ''
    return _agreement(f'label {", ".join(map(str, labels.tolist()))}', largest_difference(expected, scores), problem)


def _compare_maps(reference: BaseModel, network: DeployNetwork, outputs: tuple[Tensor, ...], pictures: Tensor) -> Agreement:
    expected = torch.stack([sample.seg_logits.data for sample in stock_predictions(reference, pictures)])
    (found,) = outputs
    if expected.shape[1] == 1:  # one class: the stock code gives probabilities
        threshold = reference.decode_head.threshold
        expected = torch.cat([torch.full_like(expected, threshold), expected], 1)
        found = found if network.labels else torch.cat([torch.full_like(found, threshold), found.sigmoid()], 1)
    if network.labels:
        labels, largest = found, None
    else:
        labels, largest = found.argmax(1), largest_difference(expected, found)
    differing, wrong = differing_labels(expected, labels)
    problem = f'{wrong} of {labels.numel()} pixels have another label' if wrong else ''
    return _agreement(f'{len(labels.unique())} labels, {differing / labels.numel():.4%} of the pixels tie', largest, problem)


def differing_labels(expected: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many labels are not the best of the scores [N, classes, ...], and how many of these not even within the tolerance."""
    best, chosen = expected.max(1), expected.gather(1, labels.unsqueeze(1)).squeeze(1)
    differing = best.indices != labels
    wrong = differing & (best.values - chosen > TOLERANCE * expected.abs().max())
    return int(differing.sum()), int(wrong.sum())


def _agreement(found: str, largest: float | None, problem: str = '') -> Agreement:
    if not problem and largest is not None and not largest <= TOLERANCE:  # NaN is more as well
        problem = f'the largest difference is {largest:.1e} of the scale, more than {TOLERANCE:.0e}'
    return Agreement(found, largest, problem)


def _compare_detections(reference: BaseModel, network: Any, outputs: tuple[Tensor, ...], pictures: Tensor) -> Agreement:
    expected = stock_predictions(reference, pictures)[0].pred_instances
    boxes, scores, labels, *masks = outputs
    pairs = match(expected.bboxes, expected.labels, boxes, labels)
    side = max(pictures.shape[2:])
    differences = torch.maximum(
        (expected.bboxes[pairs[:, 0]] - boxes[pairs[:, 1]]).abs().amax(1) / side,
        (expected.scores[pairs[:, 0]] - scores[pairs[:, 1]]).abs(),
    )
    if masks:
        probabilities = _mask_probabilities(reference, pictures, expected.bboxes, expected.labels)
        same = (probabilities[pairs[:, 0]] - masks[0][pairs[:, 1]]).abs()
        differences = torch.maximum(differences, same.flatten(1).amax(1) if len(same) else differences)
    good = differences <= TOLERANCE
    ties, missing = 0, []
    sides = (expected.scores, pairs[good, 0], scores), (scores, pairs[good, 1], expected.scores)
    for values, matched, others in sides:
        alone = torch.ones(len(values), dtype=torch.bool)
        alone[matched] = False
        # A box may be on one side only where its score ties with the threshold, or with the last that the other side had room for.
        tied = (values - network.score_threshold).abs() <= TOLERANCE
        if len(others) == network.most:
            tied |= values - others.min() <= TOLERANCE
        ties += int((alone & tied).sum())
        missing.append(int((alone & ~tied).sum()))
    found = f'{len(boxes)} boxes, {int(good.sum())} of {len(expected.bboxes)} matched' + (f', {ties} tie' if ties else '')
    if any(missing):
        return Agreement(found, float('inf'), f'{missing[0]} of {len(expected.bboxes)} boxes are missing and {missing[1]} are added')
    return _agreement(found, float(differences[good].max()) if good.any() else 0.0)


def match(expected: Tensor, expected_labels: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Pairs [P, 2] of indices: each expected box [M, 4] in turn with the nearest box [K, 4] of its label that is still free."""
    distances = (expected[:, None] - boxes[None]).abs().amax(2)
    distances[expected_labels[:, None] != labels[None]] = float('inf')
    pairs = []
    for index in range(len(expected) if len(boxes) else 0):
        distance, nearest = distances[index].min(0)
        if distance.isfinite():
            pairs.append((index, int(nearest)))
            distances[:, nearest] = float('inf')
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def _mask_probabilities(model: BaseModel, pictures: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """What the stock mask head gives for boxes; its predictions hold the masks only after pasting and thresholding."""
    head = model.roi_head
    if not len(boxes):
        return boxes.new_zeros(0, 1, 1)
    features = model.extract_feat(model.data_preprocessor(batch_of(toolbox_of(type(model), TOOLBOXES), pictures), False)['inputs'])
    regions = head.mask_roi_extractor(features[: head.mask_roi_extractor.num_inputs], torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1))
    masks = head.mask_head(head.shared_head(regions) if head.with_shared_head else regions).sigmoid()
    return masks[:, 0] if head.mask_head.class_agnostic else masks[torch.arange(len(labels)), labels]


COMPARISONS = dict(classification=_compare_scores, segmentation=_compare_maps, detection=_compare_detections)
