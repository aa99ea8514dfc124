"""What a model computes before any sorting or thresholding, for comparing whole models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from orepa_mm.reparam.comparison import tensors

Outputs = list[Tensor]


@torch.no_grad()
def dense_outputs(model: nn.Module, data_batch: Any) -> Callable[[], Outputs]:
    """A function that runs ``model`` on ``data_batch`` and returns its outputs before any sorting or thresholding.

    Predictions after non-maximum suppression can jump where scores tie, so they measure nothing. Detectors in two stages are compared
    at their features, their proposal network and their heads on one fixed set of proposals; all other models at what their
    ``forward`` returns in ``mode='tensor'``.
    """
    data = model.data_preprocessor(data_batch, False)
    inputs, samples = data['inputs'], data.get('data_samples')
    if not (getattr(model, 'with_rpn', False) and getattr(model, 'with_roi_head', False)):
        return torch.no_grad()(lambda: list(tensors(model(inputs, samples, mode='tensor'))))

    proposals = model.rpn_head.predict(model.extract_feat(inputs), samples, rescale=False)

    found = any(len(instances) for instances in proposals)  # the stock heads cannot run on none

    def run() -> Outputs:
        features = model.extract_feat(inputs)
        heads = model.roi_head.forward(features, proposals, samples) if found else ()
        return list(tensors((features, model.rpn_head(features), heads)))

    return torch.no_grad()(run)
