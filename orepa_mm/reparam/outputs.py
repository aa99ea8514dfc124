"""How far apart the outputs of a model's two forms are."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Outputs = list[Tensor]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside distributed and test-time-augmentation wrappers."""
    from mmengine.model import BaseTTAModel, is_model_wrapper

    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _first_augmentation(model: nn.Module, data_batch: Any) -> Any:
    """A plain batch out of the batch of a test-time-augmentation pipeline."""
    from mmengine.model import BaseTTAModel, is_model_wrapper

    while is_model_wrapper(model):
        model = model.module
    return {key: data_batch[key][0] for key in data_batch} if isinstance(model, BaseTTAModel) else data_batch


def tensors(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors of a nested structure, in a fixed order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


@torch.no_grad()
def dense_outputs(model: nn.Module, data_batch: Any) -> Callable[[], Outputs]:
    """A function that runs ``model`` on ``data_batch`` and returns its outputs before any sorting or thresholding.

    Predictions after non-maximum suppression can jump where scores tie, so they measure nothing. Detectors in two stages are compared
    at their features, their proposal network and their heads on one fixed set of proposals; all other models at what their
    ``forward`` returns in ``mode='tensor'``.
    """
    network = unwrap(model)
    data = network.data_preprocessor(_first_augmentation(model, data_batch), False)
    inputs, samples = data['inputs'], data.get('data_samples')
    if not (getattr(network, 'with_rpn', False) and getattr(network, 'with_roi_head', False)):
        return torch.no_grad()(lambda: list(tensors(network(inputs, samples, mode='tensor'))))

    proposals = network.rpn_head.predict(network.extract_feat(inputs), samples, rescale=False)

    found = any(len(instances) for instances in proposals)  # the stock heads cannot run on none

    def run() -> Outputs:
        features = network.extract_feat(inputs)
        heads = network.roi_head.forward(features, proposals, samples) if found else ()
        return list(tensors((features, network.rpn_head(features), heads)))

    return torch.no_grad()(run)


def largest_difference(expected: Outputs, actual: Outputs) -> float:
    """The largest difference, each tensor's relative to its own largest magnitude; inf where a value is not finite."""
    largest = 0.0
    for a, b in zip(expected, actual, strict=True):
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        if not (a.isfinite().all() and b.isfinite().all()):
            return float('inf')
        largest = max(largest, float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(torch.float32).tiny)))
    return largest
