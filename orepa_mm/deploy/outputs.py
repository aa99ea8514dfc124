"""What a model computes before any sorting or thresholding, for comparing whole models."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from ..reparam.comparison import tensors

Outputs = list[Tensor]


@torch.no_grad()
def dense_outputs(model: BaseModel, data_batch: Any) -> Callable[..., Outputs]:
    """A function that runs ``model``, or another network of the same kind, on ``data_batch`` and returns its outputs before any sorting
    or thresholding.

    Predictions after non-maximum suppression can jump where scores tie, so they measure nothing. Detectors in two stages are compared
    at their features, their proposal network and their heads on one fixed set of proposals; all other models at what their
    ``forward`` returns in ``mode='tensor'``.

    Args:
        model: Of mmdet, mmseg or mmpretrain, in evaluation mode; prepares the batch and makes the proposals.
        data_batch: As for its ``test_step``.
    """
    data = model.data_preprocessor(data_batch, False)
    inputs, samples = data['inputs'], data.get('data_samples')
    two_stages = getattr(model, 'with_rpn', False) and getattr(model, 'with_roi_head', False)
    proposals = model.rpn_head.predict(model.extract_feat(inputs), samples, rescale=False) if two_stages else []
    found = any(len(instances) for instances in proposals)  # the stock heads cannot run on none

    def run(network: BaseModel = model) -> Outputs:
        dtype = next(network.parameters()).dtype
        pictures = inputs.to(dtype)
        if not two_stages:
            return list(tensors(network(pictures, samples, mode='tensor')))
        regions = [InstanceData(**{key: _cast(value, dtype) for key, value in item.items()}) for item in proposals]
        features = network.extract_feat(pictures)
        heads = network.roi_head.forward(features, regions, samples) if found else ()
        return list(tensors((features, network.rpn_head(features), heads)))

    return torch.no_grad()(run)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
