"""Every method a layer is registered under does what backbones, checkpoints, deployment and tools ask of it."""

import importlib
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmcv.cnn import build_conv_layer
from mmengine.config import Config
from mmengine.model import normal_init
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from orepa_mm import expand, reparameterize
from orepa_mm.backbones.resnet import _rebuilt
from orepa_mm.checkpoints.architecture import recognise
from orepa_mm.deploy.batches import random_batch
from orepa_mm.deploy.loading import build_model
from orepa_mm.deploy.stock_model import to_stock_model
from orepa_mm.errors import ExpandError, LayerError
from orepa_mm.layers import METHODS, SqueezedConv2d
from orepa_mm.layers.base import shape_of

ROOT = Path(__file__).resolve().parent.parent
NARROW = dict(stem_channels=32, base_channels=8)


def settle(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model.train(False)  # returns nothing in some backbones
    return model


def relative(actual, expected) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


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
    layer, x = METHODS[method](4, 6, 3, padding=1, norm_cfg=dict(affine=False, eps=0.1)).eval(), torch.randn(1, 4, 9, 8)
    assert layer.origin_norm.weight is None and relative(reparameterize(layer)(x), layer(x)) < 1e-5


WRITES = {
    'data': lambda layer, value: layer.weight.data.copy_(value),  # as mmaction2's loader does
    'new data': lambda layer, value: setattr(layer.weight, 'data', value),
    'parameter': lambda layer, value: setattr(layer, 'weight', nn.Parameter(value)),
    'index': lambda layer, value: layer.weight.detach().__setitem__(slice(None), value),
    'view': lambda layer, value: layer.weight.data.flatten().copy_(value.flatten()),
    'rows': lambda layer, value: [row.copy_(new) for row, new in zip(layer.weight.data, value, strict=True)],
    'out': lambda layer, value: torch.mul(value, 1, out=layer.weight.data),
    'foreach': lambda layer, value: torch._foreach_copy_([layer.weight.data], [value]),
    'draw': lambda layer, value: normal_init(layer, mean=3, std=0),
    'init': lambda layer, value: nn.init.constant_(layer.weight, 3),
    'in place': lambda layer, value: torch.no_grad()(layer.weight.fill_)(3),
}


@pytest.mark.parametrize('way', WRITES)
@pytest.mark.parametrize('method', METHODS)
def test_what_is_written_into_a_weight_takes_effect_or_is_refused(method, way):
    layer, value = (
        METHODS[method](4, 6, 3, padding=1),
        torch.randn(6, 4, 3, 3) if way in list(WRITES)[:-3] else torch.full((6, 4, 3, 3), 3.0),
    )
    if issubclass(METHODS[method], SqueezedConv2d):
        WRITES[way](layer, value)
        assert relative(layer.weight, value) < 1e-5
    else:
        with pytest.raises(LayerError, match=f'the weight of a {method}Conv2d is computed'):
            WRITES[way](layer, value)
        with pytest.raises(LayerError, match=f'the bias of a {method}Conv2d is computed'):
            nn.init.zeros_(layer.bias)


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
def test_torch_fuses_a_norm_into_it_or_says_what_to_do(method):
    layer, norm = settle(nn.Sequential(METHODS[method](4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)))
    x = torch.randn(2, 4, 9, 8)
    if issubclass(METHODS[method], SqueezedConv2d):
        assert relative(fuse_conv_bn_eval(layer, norm)(x), norm(layer(x))) < 1e-5
    else:
        with pytest.raises(LayerError, match='reparameterize'):
            fuse_conv_bn_eval(layer, norm)


def test_a_rebuilt_convolution_keeps_its_settings():
    options = dict(stride=2, padding=2, dilation=2, groups=2, bias=False, padding_mode='reflect')
    rebuilt = _rebuilt(nn.Conv2d(4, 6, 3, **options), dict(type='OREPAConv2d'))
    assert shape_of(rebuilt) == shape_of(nn.Conv2d(4, 6, 3, **options))


@pytest.mark.parametrize('method', METHODS)
def test_the_stock_model_computes_the_same(method):
    cfg = Config.fromfile(ROOT / f'configs/imagenet/{method.lower()}-resnet18_4xb64-120e_in1k.py')
    cfg.merge_from_dict(dict(model=dict(backbone=dict(**NARROW, init_cfg=None), head=dict(in_channels=64))))
    assert cfg.model.backbone.get('method', 'OREPA') == method
    stock = to_stock_model(cfg, settle(build_model(cfg)), [random_batch(cfg)])
    assert stock.cfg.model.backbone.type == 'ResNet' and 'method' not in stock.cfg.model.backbone


@pytest.mark.parametrize('method', METHODS)
def test_as_conv_cfg(method):
    name = METHODS[method].__name__
    layer = build_conv_layer(dict(type=name), 4, 6, 3, padding=1, bias=False)
    assert type(layer) is METHODS[method]
    assert type(build_conv_layer(dict(type=name, plain_sizes=(1,)), 4, 6, 1)) is nn.Conv2d


def built_empty(way: str, layer: type[nn.Module], shape: tuple[int, ...], state: dict, **options) -> nn.Module:
    """A layer whose memory held something else, with ``state`` loaded into it."""
    if way == 'skip_init':
        empty = nn.utils.skip_init(layer, *shape, **options)
    else:
        with torch.device('meta'):
            empty = layer(*shape, **options)
        empty = empty if way == 'assign' else empty.to_empty(device='cpu')
    for value in (*empty.parameters(), *empty.buffers()):
        if not value.is_meta:
            value.data.fill_(7)
    empty.load_state_dict(state, assign=way == 'assign')
    return empty


@pytest.mark.parametrize('way', ['assign', 'to_empty', 'skip_init'])
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('size', [1, 3, 5, 7])
def test_built_empty_and_loaded(method, size, way):
    layer, shape, options = METHODS[method], (4, 36, size, 1, size // 2), dict(groups=2)
    filled, x = settle(layer(*shape, **options)), torch.randn(2, 4, 9, 8)
    loaded, expected = built_empty(way, layer, shape, filled.state_dict(), **options).eval(), filled(x)
    assert relative(loaded(x), expected) < 1e-6
    assert relative(reparameterize(loaded)(x), expected) < 1e-5


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('method', METHODS)
def test_weights_of_another_dtype_that_are_assigned(method, dtype):
    """Those of the layer, where linear also of a plain convolution, and where it is OREPA of one with fewer branches."""
    layer, shape = METHODS[method], (4, 36, 3, 1, 1)
    sources = {method: settle(layer(*shape, bias=False).to(dtype))}
    if issubclass(layer, SqueezedConv2d):
        sources['plain'] = nn.Conv2d(*shape, bias=False, dtype=dtype)
    if method == 'OREPA':
        sources['fewer'] = layer(*shape, bias=False, branches='light', dtype=dtype)
    x = torch.randn(2, 4, 9, 8, dtype=dtype)
    for source in sources.values():
        for device in ('cpu', 'meta'):
            loaded = layer(*shape, bias=False, device=device).eval()
            loaded.load_state_dict(source.state_dict(), assign=True)
            assert {value.dtype for value in loaded.parameters()} == {dtype} and not any(value.is_meta for value in loaded.parameters())
            assert relative(loaded(x), source(x)) < 100 * torch.finfo(dtype).eps
            loaded.train()(x).sum().backward()


@pytest.mark.parametrize('method', METHODS)
def test_from_plain_weights(method):
    """Linear branches represent any kernel; norms in branches have statistics that no kernel gives."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)).double()
    reference, x = deepcopy(model), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    if issubclass(METHODS[method], SqueezedConv2d):
        assert isinstance(expand(model, method=method)[0], METHODS[method])
        assert relative(model(x), reference(x)) < 1e-10
    else:
        with pytest.raises(ExpandError, match=f"method='{method}': its branches have norms"):
            expand(model, method=method)
        assert torch.equal(model(x), reference(x))


@pytest.mark.parametrize('change', ['keep', 'there and back', 'half', 'to_empty'])
@pytest.mark.parametrize(
    'options', [dict(branches=('origin',)), dict(branches='light', groups=8), dict(groups=8), dict(method='ExpandNet')]
)
def test_the_memory_format_stays(options, change):
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
