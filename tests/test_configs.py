"""Every config builds, and the stem's learning rate is what the config says."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/*.py') if '_base_' not in path.parts)
TRANSFER = [name for name in CONFIGS if 'imagenet/' not in name]


def build_model(name: str):
    cfg = Config.fromfile(ROOT / name)
    init_default_scope(cfg.default_scope)
    registry = __import__(f'{cfg.default_scope}.registry').registry.MODELS
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in cfg.model:
        cfg.model.data_preprocessor = cfg.data_preprocessor
    return cfg, registry.build(cfg.model)


def test_there_are_configs():
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_optimizer_build(name):
    cfg, model = build_model(name)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    trained = {id(p) for group in optim_wrapper.optimizer.param_groups for p in group['params']}
    assert {id(p) for p in model.parameters() if p.requires_grad} <= trained
    assert any(hook['type'] == 'ReparameterizeHook' for hook in cfg.custom_hooks)


@pytest.mark.parametrize('name', TRANSFER)
def test_the_stem_learns_at_its_own_rate(name):
    cfg, model = build_model(name)
    model.train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    base = cfg.optim_wrapper.optimizer.lr
    stem = ('backbone.conv1.', 'backbone.bn1.')
    assert cfg.stem_lr_mult != 1 and any(name.startswith(stem) for name, _ in model.named_parameters())
    for parameter_name, p in model.named_parameters():
        expected = base * (cfg.stem_lr_mult if parameter_name.startswith(stem) else 1)
        assert rates[id(p)] == pytest.approx(expected), parameter_name
        assert p.requires_grad or not parameter_name.startswith(stem), parameter_name


def test_the_stem_trains(tools, tmp_path):
    """Weights of the stem before and after a short real run."""
    status, error = tools.train('coco', tmp_path, '--no-validate')
    assert status == 0, error
    from mmdet.registry import MODELS
    from mmengine.runner import set_random_seed

    after = torch.load(tmp_path / 'last.pth', weights_only=False)
    cfg = Config.fromfile(ROOT / tools.CONFIGS['coco'])
    set_random_seed(0)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    before = {name: p for name, p in model.named_parameters() if name.startswith('backbone.conv1.')}
    assert len(before) == 27
    for name, p in before.items():
        if not name.endswith('.freq'):  # its scale starts at zero, so it moves only after the scale has
            assert (after['state_dict'][name] - p).abs().max() > 0, name


def test_mini_configs_inherit_from_the_real_one():
    mini = Config.fromfile(ROOT / 'configs/coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py')
    real = Config.fromfile(ROOT / 'configs/coco/mask-rcnn_orepa-r50_fpn_1x_coco.py')
    assert mini.stem_lr_mult == real.stem_lr_mult and mini.optim_wrapper.paramwise_cfg == real.optim_wrapper.paramwise_cfg
    assert mini.model.roi_head.bbox_head.num_classes == real.model.roi_head.bbox_head.num_classes == 80
