"""Batches to run a config's model on: real pictures of its test set, and random ones."""

from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

SIZES = dict(mmpretrain=(224, 224), mmdet=(224, 320), mmseg=(128, 256))


def real_batches(cfg: Config, count: int = 2) -> list[Any]:
    """The first ``count`` pictures of the test set as batches of one, as its pipeline prepares them; none where the files are not there."""
    if cfg.get('test_dataloader') is None:
        return []
    init_default_scope(cfg.default_scope)
    loader = dict(cfg.test_dataloader, batch_size=1, num_workers=0, persistent_workers=False)
    if cfg.default_scope == 'mmpretrain':
        loader.setdefault('collate_fn', dict(type='default_collate'))
    try:
        batches = iter(Runner.build_dataloader(loader))
        return [batch for _, batch in zip(range(count), batches, strict=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def random_batch(cfg: Config, count: int = 2, seed: int = 0) -> dict:
    """``count`` pictures of noise, as a batch for the model's ``test_step``."""
    scope = cfg.default_scope
    height, width = SIZES[scope]
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(count)]
    structures = import_module(f'{scope}.structures')
    name = dict(mmpretrain='DataSample', mmdet='DetDataSample', mmseg='SegDataSample')[scope]
    meta = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width), scale_factor=(1.0, 1.0))
    samples = [getattr(structures, name)(metainfo=meta) for _ in pictures]
    return dict(inputs=torch.stack(pictures) if scope == 'mmpretrain' else pictures, data_samples=samples)
