"""Configs with classes as types, mmengine's new style, do what the same configs with names do."""

import argparse
import inspect
import pickle
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from common import load_config, merge_options
from conftest import ROOT, done, few
from mmcv.cnn import build_conv_layer
from mmdet.models import FPN
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import PretrainedInit
from mmengine.registry import HOOKS, Registry, init_default_scope, root
from torch import nn

from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.backbones.mmdet_backbones import OREPAResNet
from orepa_mm.checkpoints.checking import check_pretrained
from orepa_mm.deploy.batches import random_batch, real_batches
from orepa_mm.deploy.loading import build_model, load_model
from orepa_mm.deploy.stock_model import to_stock_model
from orepa_mm.engine.reparameterize_hook import ReparameterizeHook
from orepa_mm.errors import CheckpointError, LayerError, UsageError
from orepa_mm.registry import class_of, scope_of, type_name

ROOTS = [registry for registry in vars(root).values() if isinstance(registry, Registry)]


def lazy_text(cfg: Config, scope: str) -> str:
    """A config whose types are the imported classes."""
    imports: dict[Any, str] = {}

    def written(node: Any, key: str = '') -> str:
        if isinstance(node, dict):
            node = {name: value for name, value in node.items() if name != '_scope_'}
            return f'dict(**{{{", ".join(f"{name!r}: {written(value, name)}" for name, value in node.items())}}})'
        if isinstance(node, list | tuple):
            inner = ''.join(f'{written(each)}, ' for each in node)
            return f'[{inner}]' if isinstance(node, list) else f'({inner})'
        kind = named(node) if key == 'type' and isinstance(node, str) else None
        if kind is None:
            return repr(node)
        return imports.setdefault(kind, f'type{len(imports)}')

    def named(name: str) -> Any:
        for registry in ROOTS:
            try:
                kind = class_of(name, registry, scope)
            except RuntimeError:  # in no such registry
                continue
            if inspect.isclass(kind) or inspect.isfunction(kind):
                return kind
        return None

    keys = ('custom_imports', 'default_scope', 'stem_paramwise_cfg', 'safe_hooks')
    lines = [f'{key} = {written(value)}' for key, value in cfg.items() if key not in keys]
    sources = [f'from {kind.__module__} import {kind.__name__} as {name}' for kind, name in imports.items()]
    return '\n'.join([*sources, *lines, ''])


@pytest.mark.parametrize('name', few(['imagenet', 'coco', 'cityscapes'], 'imagenet'))
def test_a_lazy_config_is_trained_tested_converted_and_exported(name, tools, tmp_path):
    names = Config.fromfile(tools.CONFIGS[name])
    names.merge_from_dict(tools.options(name))
    init_default_scope(names.default_scope)
    path, checkpoint = tmp_path / 'lazy.py', tmp_path / 'run/last.pth'
    path.write_text(lazy_text(names, names.default_scope))
    cfg = Config.fromfile(path)
    assert inspect.isclass(cfg.model.backbone.type) and scope_of(cfg) == names.default_scope and cfg.get('default_scope') is None
    done(tools.run('tools/train', path, '--work-dir', tmp_path / 'run'))
    assert (tmp_path / 'run/lazy.py').exists()
    out, show = tmp_path / ('maps' if name == 'cityscapes' else 'out.pkl'), tmp_path / 'show'
    done(tools.run('tools/test', path, checkpoint, '--work-dir', tmp_path / 'test', '--reparameterize', '--out', out, '--show-dir', show))
    log = next((tmp_path / 'test').glob('*/*.log')).read_text()
    assert log.count('Re-parameterized 17 layers') + log.count('Re-parameterized 20 layers') == 1
    assert any(out.iterdir()) if out.is_dir() else pickle.loads(out.read_bytes())
    assert any(show.rglob('*.*'))
    if name != 'coco':  # mmdet has none for masks
        done(tools.run('tools/test', path, checkpoint, '--work-dir', tmp_path / 'tta', '--tta'))
    done(tools.run('tools/model_converters/reparameterize_model', path, checkpoint, tmp_path / 'stock'))
    stock = Config.fromfile(tmp_path / 'stock/config.py')
    assert load_model(stock, tmp_path / 'stock/model.pth') and 'orepa_mm' not in (tmp_path / 'stock/config.py').read_text()
    if name != 'imagenet':
        done(tools.run('tools/deploy/export_onnx', path, checkpoint, tmp_path / 'model.onnx'))


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_weights_of_an_init_cfg_are_loaded_and_checked_whatever_its_type_is(kind, tmp_path):
    small = dict(depth=18, stem_channels=8, base_channels=8, plain_stem=True)
    stock = OREPAResNet(method='none', **small)
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    net = OREPAResNet(init='balanced', init_cfg=dict(type=kind, checkpoint=str(tmp_path / 'stock.pth')), **small)
    check_pretrained(net)
    net.init_weights()
    assert torch.allclose(net.layer1[0].conv1.weight, stock.layer1[0].conv1.weight, atol=1e-6)
    net.init_cfg['prefix'] = 'elsewhere'
    with pytest.raises(CheckpointError, match='no weights under the prefix'):
        check_pretrained(net)


@pytest.mark.parametrize('kind', ['OREPAConv2d', OREPAConv2d, DBBConv2d])
def test_a_conv_cfg_takes_plain_sizes_whatever_its_type_is(kind):
    neck = FPN([16, 32], 32, num_outs=2, conv_cfg=dict(type=kind, plain_sizes=(1,)))
    assert type(neck.lateral_convs[0].conv) is nn.Conv2d and type_name(type(neck.fpn_convs[0].conv)) == type_name(kind)
    net = OREPAResNet(18, conv_cfg=dict(type=kind), plain_stem=True)
    assert type(net.conv1) is nn.Conv2d and type_name(type(net.layer1[0].conv1)) == type_name(kind)
    assert next(iter(inspect.signature(OREPAConv2d).parameters)) == 'in_channels'
    with pytest.raises(LayerError, match=r"conv_cfg=dict\(type='Conv3d'\)"):
        build_conv_layer(dict(type=kind), 3, 8, (1, 3, 3))


@pytest.mark.parametrize('kind', ['ReparameterizeHook', ReparameterizeHook, 'OREPAHook'])
@pytest.mark.parametrize('where', ['custom_hooks', 'default_hooks'])
def test_the_tools_find_a_hook_whatever_its_type_is(kind, where):
    hook = dict(type=kind, tolerance=0.1)
    cfg = Config(
        dict(custom_hooks=[hook], default_hooks={}) if where == 'custom_hooks' else dict(default_hooks=dict(deploy=hook, timer=None))
    )
    choose_form = runpy.run_path(str(ROOT / 'tools/test.py'))['choose_form']
    choose_form(cfg, True)
    assert str(cfg).count('tolerance') == 1 and len(cfg.get('custom_hooks') or []) == (where == 'custom_hooks')
    choose_form(cfg, False)
    assert 'tolerance' not in str(cfg)


def test_the_scope_of_a_config_is_its_own_or_that_of_its_model():
    class Mine(FPN):
        pass

    given = [
        dict(default_scope='mmseg'),
        dict(model=dict(type=FPN)),
        dict(model=dict(type=Mine)),
        dict(model=dict(type='mmdet.models.FPN')),
    ]
    given += [dict(default_scope=None, model=dict(type=nn.Conv2d)), dict(default_scope='mmengine', model=dict(type='FPN')), {}]
    assert [scope_of(Config(cfg)) for cfg in given] == ['mmseg', 'mmdet', 'mmdet', 'mmdet', '', '', '']


def test_the_scope_of_an_installed_recipe_is_dropped(tmp_path):
    """mmengine gives it to what a config has from ``orepa_mm::...``, and its registries then warn at every object they build."""
    ours = "dict(type='CheckHook', _scope_='orepa_mm')"
    (tmp_path / 'a.py').write_text(
        f"custom_hooks = [{ours}]\nmodel = dict(type='mmdet.models.FPN', _scope_='mmdet', parts=({ours}, dict(x={ours})))\n"
    )
    cfg = load_config(argparse.Namespace(config=str(tmp_path / 'a.py'), local_rank=0, cfg_options=None, launcher='none', work_dir=None))
    assert re.findall(r"'_scope_': '(\w+)'", str(cfg.to_dict())) == ['mmdet'] and cfg.default_scope == 'mmdet'


def test_dots_in_the_names_of_new_custom_keys():
    cfg = Config(dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'backbone.conv1': dict(lr_mult=0.1, decay_mult=0.0)}))))
    path = 'optim_wrapper.paramwise_cfg.custom_keys'
    options = {f'{path}.backbone.layer1.lr_mult': 0, f'{path}.backbone.conv1.lr_mult': 0.5, f'{path}.head.decay_mult': 2}
    merge_options(cfg, options | {f'{path}.neck.lateral.0': dict(lr_mult=3), 'a.b.c': 1})
    expected = {'backbone.conv1': dict(lr_mult=0.5, decay_mult=0.0), 'backbone.layer1': dict(lr_mult=0), 'head': dict(decay_mult=2)}
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys == expected | {'neck.lateral.0': dict(lr_mult=3)} and cfg.a.b.c == 1
    empty = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD'))))
    merge_options(empty, {f'{path}.backbone.layer1.0.conv1.lr_mult': 0})
    assert empty.optim_wrapper.paramwise_cfg.custom_keys == {'backbone.layer1.0.conv1': dict(lr_mult=0)}


@HOOKS.register_module()
class PoseHook(Hook):
    """As toolboxes beyond mmdet, mmseg and mmpretrain have them."""

    def __init__(self, enable=False, show=False, wait_time=0.0, out_dir=None):
        pass


@HOOKS.register_module()
class TextHook(Hook):
    def __init__(self, draw=False, show=False, wait_time=0.0):
        pass


def test_other_toolboxes_show_predictions_and_say_what_augmentation_takes(tmp_path):
    tool = runpy.run_path(str(ROOT / 'tools/test.py'))
    for kind, switch in ((PoseHook, 'enable'), ('TextHook', 'draw')):
        cfg = Config(dict(default_scope='mmpose', default_hooks=dict(visualization=dict(type=kind)), visualizer={}))
        tool['paint_predictions'](cfg, argparse.Namespace(show_dir=str(tmp_path), show=False, wait_time=1))
        hook = cfg.default_hooks.visualization
        assert hook[switch] and tmp_path == Path(hook.get('out_dir') or cfg.visualizer.save_dir)
    cfg = Config(dict(default_scope='mmpose', model={}, test_dataloader=dict(dataset=dict(pipeline=[{}]))))
    with pytest.raises(UsageError, match='for mmpose give tta_model and tta_pipeline'):
        tool['augment'](cfg)
    cfg.tta_model, cfg.tta_pipeline = dict(type='Mine'), []
    tool['augment'](cfg)
    assert cfg.model == dict(type='Mine', module={})


OTHER = """
import torch
from mmengine import registry as root
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import Registry
from mmengine.structures import BaseDataElement

MODELS = Registry('model', parent=root.MODELS, scope='mmother', locations=['mmother'])
DATASETS = Registry('dataset', parent=root.DATASETS, scope='mmother', locations=['mmother'])


@DATASETS.register_module()
class Pictures(BaseDataset):
    def load_data_list(self):
        return [dict(seed=seed) for seed in range(3)]

    def prepare_data(self, index):
        return dict(inputs=torch.rand(3, 64, 64), data_samples=BaseDataElement())


@MODELS.register_module()
class Net(BaseModel):
    def __init__(self, backbone):
        super().__init__(dict(type='ImgDataPreprocessor'))
        self.backbone = MODELS.build(backbone)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.backbone(inputs)[-1]
"""


def test_models_of_other_toolboxes_are_converted(tmp_path, monkeypatch):
    (tmp_path / 'mmother').mkdir()
    (tmp_path / 'mmother/__init__.py').touch()
    (tmp_path / 'mmother/registry.py').write_text(OTHER)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = dict(type='mmdet.OREPAResNet', depth=18, stem_channels=16, base_channels=8)
    loader = dict(batch_size=1, num_workers=0, dataset=dict(type='Pictures'), sampler=dict(type='DefaultSampler', shuffle=False))
    cfg = Config(dict(default_scope='mmother', model=dict(type='Net', backbone=backbone), test_dataloader=loader))
    model = build_model(cfg).eval()
    batches = real_batches(cfg)
    assert len(batches) == 2
    stock = to_stock_model(cfg, model, batches)
    assert stock.cfg.model.backbone.type == 'mmdet.ResNet' and type(stock.model.backbone).__name__ == 'ResNet'
    with pytest.raises(UsageError, match='batches of mmother are not known'):
        random_batch(cfg)
