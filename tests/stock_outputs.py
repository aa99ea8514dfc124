"""A model's features, and what its head that sees them whole makes of them; needs nothing of the package under test."""

import torch
from torch import Tensor, nn


def _tensors(value) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for item in value for tensor in _tensors(item)]


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    features = model.extract_feat(inputs)
    heads = [getattr(model, name) for name in ('rpn_head', 'bbox_head', 'decode_head', 'head') if getattr(model, name, None) is not None]
    return _tensors(features) + _tensors(heads[0](features))
