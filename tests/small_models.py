"""Small models with weights like trained ones, for tests of what leaves the package."""

from importlib.util import find_spec
from pathlib import Path

import torch
from conftest import ROOT
from mmengine.config import Config
from torch import nn

from orepa_mm.deploy.loading import build_model

CONFIGS = dict(
    classifier='imagenet/orepa-resnet18-w16_imagenet-mini',
    pspnet='cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini',
    deeplabv3plus='cityscapes/deeplabv3plus_orepa-r18-w16-d8_cityscapes-mini',
    retinanet='coco/retinanet_orepa-r18-w16_fpn_coco-mini',
    maskrcnn='coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini',
)
PICTURES = dict(imagenet='imagenet-mini/val', cityscapes='cityscapes-mini/leftImg8bit/val', coco='coco-mini/val2017')


def package(scope: str) -> Path:
    """Where a toolbox keeps its configs and tools."""
    return Path(find_spec(scope).origin).parent / '.mim'


def stock(scope: str, name: str) -> Config:
    """A toolbox's own config."""
    return Config.fromfile(package(scope) / 'configs' / f'{name}.py')


def path_of(name: str) -> Path:
    return ROOT / f'configs/{CONFIGS[name]}.py'


def config(name: str, **options) -> Config:
    """A small config without what its weights start from; ``options`` with two underscores for a dot."""
    cfg = Config.fromfile(path_of(name))
    for key in ('init_cfg', 'init'):
        cfg.model.backbone.pop(key, None)
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return cfg


def pictures(name: str, data: Path) -> Path:
    """The folder of the drawn pictures the config is for."""
    return data / PICTURES[CONFIGS[name].split('/')[0]]


def save_weights(cfg: Config, path: Path) -> Path:
    """A checkpoint of ``cfg`` whose activations are as large as a trained network's, and whose scores are as far apart."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain average
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Conv2d | nn.Linear) and name.endswith(('cls', 'reg', 'conv_logits')):
            nn.init.normal_(module.weight, std=0.02)
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(4, 3, 128, 192)
            model.extract_feat(x) if cfg.default_scope == 'mmdet' else model(x, mode='tensor')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b')))), path)
    return path
