"""Every method a layer is registered under does what backbones, checkpoints, deployment and tools ask of it."""

import importlib
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import needs_torch
from method_case import MethodCase, NormedCase, relative
from mmengine.config import Config
from test_reparameterize import settle
from torch import nn

from orepa_mm import expand, reparameterize
from orepa_mm.checkpoints.architecture import recognise
from orepa_mm.deploy.batches import random_batch
from orepa_mm.deploy.loading import build_model
from orepa_mm.deploy.stock_model import to_stock_model
from orepa_mm.layers import METHODS

ROOT = Path(__file__).resolve().parent.parent
NARROW = dict(stem_channels=32, base_channels=8)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_resnet(scope, method):
    registry = importlib.import_module(f'{scope}.registry').MODELS
    net = settle(registry.build(dict(type='OREPAResNet', depth=18, method=method, **NARROW))).double()
    replaced = [layer for layer in net.modules() if isinstance(layer, METHODS[method])]
    assert len(replaced) == (17 if method == 'OREPA' else 16)  # with the stem, without the projection shortcuts
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = net(x)[-1]
    assert recognise({f'backbone.{key}': value for key, value in net.state_dict().items()}) == dict(
        type='OREPAResNet', depth=18, method=method, **NARROW
    )
    reparameterize(net)
    assert not [layer for layer in net.modules() if isinstance(layer, METHODS[method])]
    assert relative(net(x)[-1], expected) < 1e-10


@pytest.mark.parametrize('method', [method for method in METHODS if METHODS[method].brings_norm])
@pytest.mark.parametrize('kind', ['BN', 'SyncBN'])
def test_settings_of_norms_hold_for_those_in_the_branches(method, kind):
    registry = importlib.import_module('mmdet.registry').MODELS
    norm_cfg = dict(type=kind, requires_grad=False, eps=1e-3, momentum=0.03)
    net = registry.build(dict(type='OREPAResNet', depth=18, method=method, norm_cfg=norm_cfg, norm_eval=True, **NARROW))
    net.train()  # returns nothing
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 40 and {(norm.eps, norm.momentum, norm.training) for norm in norms} == {(1e-3, 0.03, False)}
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_every_method_has_its_case():
    """A subclass of MethodCase, by which it is tested as a layer."""
    for path in (ROOT / 'tests').glob('test_*_conv.py'):
        importlib.import_module(path.stem)
    cases = [case for base in (MethodCase, NormedCase) for case in base.__subclasses__()]
    assert {getattr(case, 'layer', None) for case in cases} >= {*METHODS.values()}


def test_a_computed_weight_is_a_tensor_like_others(tmp_path):
    layer = METHODS['OREPA'](4, 6, 3)
    torch.save(layer.weight.detach(), tmp_path / 'weight.pth')
    saved = torch.load(tmp_path / 'weight.pth', weights_only=True)
    results = [saved, deepcopy(layer.weight.detach()), layer.weight + 0, layer.weight.detach().clone()]
    assert all(type(value) is torch.Tensor and torch.equal(value, layer.weight) for value in results)
    scratch = layer.weight + 0
    scratch.zero_()
    assert torch.equal(saved, layer.weight)
    layer.weight.square().sum().backward()
    assert layer.kernel.origin.grad.abs().max() > 0


@pytest.mark.parametrize('method', METHODS)
def test_the_stock_model_computes_the_same(method):
    cfg = Config.fromfile(ROOT / 'configs/imagenet/none-resnet18_4xb64-120e_in1k.py')
    cfg.merge_from_dict(dict(model=dict(backbone=dict(type='OREPAResNet', method=method, **NARROW), head=dict(in_channels=64))))
    stock = to_stock_model(cfg, settle(build_model(cfg)), [random_batch(cfg)])
    assert stock.cfg.model.backbone.type == 'ResNet' and 'method' not in stock.cfg.model.backbone


@pytest.mark.parametrize('change', ['keep', 'there and back', 'half', 'to_empty'])
@pytest.mark.parametrize(
    'options', [dict(branches=('origin',)), dict(branches='light', groups=8), dict(groups=8), dict(method='ExpandNet')]
)
def test_the_memory_format_stays(options, change):
    if change == 'half':
        needs_torch('2.3', 'half precision on a CPU')
    options, last = dict(options), torch.channels_last
    groups = options.pop('groups', 1)
    reference = nn.Conv2d(8, 8, 3, groups=groups).to(memory_format=last).weight.stride()
    model = expand(nn.Sequential(nn.Conv2d(8, 8, 3, groups=groups).to(memory_format=last)), **options)
    if change == 'there and back':
        model.to(memory_format=torch.contiguous_format)
        assert deepcopy(reparameterize(deepcopy(model)))[0].weight.stride() == nn.Conv2d(8, 8, 3, groups=groups).weight.stride()
        model.to(memory_format=last)
    model = dict(half=model.half, to_empty=lambda: model.to_empty(device='cpu')).get(change, lambda: model)()
    assert model[0].weight.stride() == reparameterize(model)[0].weight.stride() == reference
