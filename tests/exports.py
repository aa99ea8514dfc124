"""Small models with weights like trained ones, and their exports, made once for all tests."""

from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from orepa_mm.deploy.export import Row, export
from orepa_mm.deploy.loading import build_model

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = dict(
    classifier='imagenet/orepa-resnet18-w16_imagenet-mini',
    pspnet='cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini',
)
DATA = dict(classifier='imagenet-mini/val', pspnet='cityscapes-mini/leftImg8bit/val')


def config(name: str, **options) -> Config:
    cfg = Config.fromfile(ROOT / f'configs/{CONFIGS[name]}.py')
    if cfg.model.backbone.get('init_cfg'):
        cfg.model.backbone.init_cfg = None
    cfg.merge_from_dict(options)
    return cfg


def save_weights(cfg: Config, path: Path) -> Path:
    """A checkpoint whose activations have the sizes a trained network's have."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain average
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 128, 192), mode='tensor')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=['a', 'b']))), path)
    return path


class Exports:
    """Exports by name, each made on first use."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.checkpoint, self.dynamic = cache(self._checkpoint), cache(self._dynamic)

    def pictures(self, name: str) -> Path:
        return self.data / DATA[name]

    def _checkpoint(self, name: str) -> Path:
        return save_weights(config(name), self.folder / f'{name}.pth')

    def _dynamic(self, name: str) -> tuple[Path, list[Row]]:
        path = self.folder / f'{name}.onnx'
        rows = list(export(config(name), self.checkpoint(name), path, dynamic=True, pictures=self.pictures(name)))
        return path, rows
