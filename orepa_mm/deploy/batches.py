"""Batches to run a config's model on: real pictures of its test set, and random ones."""

from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import UsageError
from ..layers import ReparameterizableConv2d
from ..registry import scope_of

SIZES = dict(mmpretrain=(224, 224), mmdet=(224, 320), mmseg=(128, 256))


def real_batches(cfg: Config, count: int = 2) -> list[Any]:
    """The first ``count`` pictures of the test set as batches of one, as its pipeline prepares them; none where the files are not there."""
    if cfg.get('test_dataloader') is None:
        return []
    scope = scope_of(cfg)
    init_default_scope(scope)
    loader = dict(cfg.test_dataloader, batch_size=1, num_workers=0, persistent_workers=False)
    if scope == 'mmpretrain':
        loader.setdefault('collate_fn', dict(type='default_collate'))
    try:
        batches = iter(Runner.build_dataloader(loader))
        return [batch for _, batch in zip(range(count), batches, strict=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def batch_of(scope: str, pictures: Tensor) -> dict[str, Any]:
    """The batch a toolbox's loader makes of pictures [N, C, H, W] that need no resizing; of three channels they are RGB."""
    name = dict(mmpretrain='DataSample', mmdet='DetDataSample', mmseg='SegDataSample')[scope]
    sample = getattr(import_module(f'{scope}.structures'), name)
    shape = tuple(pictures.shape[2:])
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
    return dict(
        inputs=[picture.flip(0) if len(picture) == 3 else picture for picture in pictures],
        data_samples=[sample(metainfo=dict(meta)) for _ in pictures],
    )


def input_channels(model: nn.Module) -> int:
    """How many channels the pictures of a model have: those of its first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d | ReparameterizableConv2d)), 3)


def random_batch(cfg: Config, channels: int = 3, count: int = 2, seed: int = 0) -> dict[str, Any]:
    """``count`` pictures of noise, as a batch for the model's ``test_step``."""
    generator = torch.Generator().manual_seed(seed)
    scope = scope_of(cfg)
    if scope not in SIZES:
        raise UsageError(f'batches of {scope} are not known here: the pictures of the test set must be there.')
    return batch_of(scope, torch.randint(0, 256, (count, channels, *SIZES[scope]), dtype=torch.uint8, generator=generator))
