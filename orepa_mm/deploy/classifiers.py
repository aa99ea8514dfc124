"""A classifier's weights under the names of torchvision and timm."""

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from ..errors import DeployError
from ..reparam.comparison import largest_difference
from .stock_model import TOLERANCES

NAMES = (
    *('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d'),
    *('wide_resnet50_2', 'wide_resnet101_2'),
)
LIBRARIES = ('torchvision', 'timm')


def build_classifier(library: str, name: str, num_classes: int) -> nn.Module:
    """The classifier ``name`` of ``torchvision`` or ``timm``, with random weights.

    Raises:
        DeployError: When the library is not installed.
    """
    try:
        if library == 'timm':
            import timm

            return timm.create_model(name, num_classes=num_classes)
        from torchvision import models
    except ImportError:
        raise DeployError(
            f'--format {library} compares with the model of {library}, which is not installed: pip install {library}.'
        ) from None
    return models.get_model(name, weights=None, num_classes=num_classes)


def to_library(stock: BaseModel, library: str, batches: Iterable[Any]) -> tuple[str, nn.Module]:
    """Name and model of torchvision or timm that computes what a stock ResNet classifier of mmpretrain computes, compared on ``batches``.

    Raises:
        DeployError: When the library has no model with these weights, or its outputs differ.
    """
    state = {_rename(key): value for key, value in stock.state_dict().items()}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    num_classes = shapes.get('fc.bias', (0,))[0]
    for name in NAMES if num_classes else ():
        with torch.device('meta'):
            candidate = build_classifier(library, name, num_classes)
        if {key: tuple(value.shape) for key, value in candidate.state_dict().items()} == shapes:
            break
    else:
        raise DeployError(
            f'{library} has no model of these weights: known are classifiers with a linear head on a {", ".join(NAMES)}. '
            'Leave --format out for the stock model of the config.'
        )
    model = build_classifier(library, name, num_classes)
    model.load_state_dict(state, strict=True)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            inputs = stock.data_preprocessor(batch, False)['inputs']
            difference = largest_difference(stock(inputs, mode='tensor'), model(inputs))
            if not difference <= TOLERANCES[torch.float32]:
                raise DeployError(
                    f"the {name} of {library} has these weights' shapes but computes something else (difference {difference:.1e} of the "
                    "outputs' scale), as with style='caffe'. Leave --format out for the stock model of the config."
                )
    return name, model


def _rename(key: str) -> str:
    return key.removeprefix('backbone.').replace('head.fc.', 'fc.')


def preprocessing(cfg: Config) -> dict[str, Any]:
    """Mean and standard deviation of a classifier's pictures, in units of 8-bit pixels, and the order of their channels."""
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    facts = {key: list(settings[key]) for key in ('mean', 'std') if settings.get(key) is not None}
    return facts | dict(channels='RGB' if settings.get('to_rgb') else 'BGR')
