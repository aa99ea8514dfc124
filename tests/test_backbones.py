"""OREPAResNet in the three toolboxes: the stock options keep their meaning, and checkpoints move between them."""

import importlib
from pathlib import Path

import pytest
import torch
from conftest import few
from method_case import relative
from mmengine.config import Config

import orepa_mm
from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.errors import FuseError
from orepa_mm.layers import METHODS, ReparameterizableConv2d

SCOPES = ('mmdet', 'mmseg', 'mmpretrain')
NARROW = dict(stem_channels=8, base_channels=8)


def build(scope: str, depth: int = 50, train: bool = False, kind: str = 'OREPAResNet', **kwargs):
    registry = importlib.import_module(f'{scope}.registry').MODELS
    net = registry.build(dict(type=kind, depth=depth, out_indices=(0, 1, 2, 3), **NARROW, **kwargs))
    return net.train(train)


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize('depth', few([18, 34, 50, 101, 152], 18, 50))
def test_depths_build_on_the_toolboxes_own_class(scope, depth):
    net = build(scope, depth)
    stock = importlib.import_module(f'{scope}.models.backbones').ResNet
    assert isinstance(net, stock) and type(net).__name__ == 'OREPAResNet'
    plain = stock(depth=depth, out_indices=(0, 1, 2, 3), **NARROW)
    plain.eval()
    x = torch.randn(1, 3, 64, 64)
    outputs = net(x)
    assert [y.shape for y in outputs] == [y.shape for y in plain(x)]
    orepa_mm.reparameterize(net)
    for actual, expected in zip(net(x), outputs, strict=True):
        assert relative(actual, expected) < 1e-5
    # Deployed it is the stock network, norms included.
    assert {key: value.shape for key, value in net.state_dict().items()} == {key: value.shape for key, value in plain.state_dict().items()}


@pytest.mark.parametrize('scope', SCOPES)
def test_which_convolutions_have_branches(scope):
    basic, bottleneck = build(scope, 18), build(scope, 50)
    assert type(basic.layer2[0].downsample[0]) is torch.nn.Conv2d
    assert all(isinstance(basic.layer2[0].get_submodule(name), OREPAConv2d) for name in ('conv1', 'conv2'))
    assert isinstance(bottleneck.layer2[0].downsample[0], OREPAConv2d)
    assert not [m for m in bottleneck.modules() if type(m) is torch.nn.Conv2d]
    assert len(bottleneck.conv1.kernel.stages) == 3


@pytest.mark.parametrize('scope', SCOPES)
def test_frozen_stages_and_norm_eval(scope):
    net = build(scope, 50, frozen_stages=1, norm_eval=True, train=True)
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith(('conv1', 'bn1', 'layer1')) for name in frozen)
    assert not net.layer3[0].bn1.training and net.layer3[0].training
    net(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if name.startswith('layer2'))
    net.eval()
    orepa_mm.reparameterize(net)
    assert not net.conv1.weight.requires_grad and net.layer2[0].conv1.weight.requires_grad


def test_with_cp_gives_the_same_gradients():
    net, x = build('mmdet', 18, train=True), torch.randn(2, 3, 64, 64)
    again = build('mmdet', 18, with_cp=True, train=True)
    again.load_state_dict(net.state_dict())
    for model in (net, again):
        model(x)[-1].square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize('scope', SCOPES)
def test_out_indices_strides_dilations_and_deep_stem(scope):
    registry = importlib.import_module(f'{scope}.registry').MODELS
    net = registry.build(
        dict(type='OREPAResNet', depth=50, out_indices=(1, 3), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), deep_stem=True, **NARROW)
    )
    outputs = net(torch.randn(1, 3, 64, 64))
    assert [y.shape[-1] for y in outputs] == [8, 8]
    assert net.layer4[1].conv2.dilation == (4, 4) and isinstance(net.layer4[1].conv2, OREPAConv2d)
    assert len([m for m in net.stem.modules() if isinstance(m, OREPAConv2d)]) == 3


def test_the_base_models_of_mmseg_take_ours():
    """The third of the three lines: OREPA before the stock type."""
    found = {}
    registry, models = (importlib.import_module(f'mmseg{part}') for part in ('.registry', ''))
    for path in (Path(models.__file__).parent / '.mim/configs/_base_/models').glob('*r50*.py'):
        backbone = Config.fromfile(path).model.backbone
        backbone = dict(backbone.get('backbone_cfg', backbone), norm_cfg=dict(type='BN'), pretrained=None, **NARROW)  # ICNet has it inside
        found[str(backbone)] = backbone
    assert {backbone['type'] for backbone in found.values()} == {'ResNetV1c'}
    for backbone in found.values():
        stock, net = (registry.MODELS.build(dict(backbone, type=kind)) for kind in ('ResNetV1c', 'OREPAResNetV1c'))
        shapes = {f'{name}.weight': m.plain_shape for name, m in net.named_modules() if isinstance(m, OREPAConv2d)}
        assert len(shapes) == 55
        shapes |= {name: tuple(value.shape) for name, value in net.state_dict().items() if '.kernel.' not in name}
        assert shapes == {name: tuple(value.shape) for name, value in stock.state_dict().items()}


def test_multi_grid_and_contract_dilation():
    options = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), multi_grid=(1, 2, 4), contract_dilation=True)
    stock = importlib.import_module('mmseg.models.backbones').ResNet(depth=50, **NARROW, **options)
    net = build('mmseg', **options)
    dilations = [[block.conv2.dilation for stage in (n.layer3, n.layer4) for block in stage] for n in (net, stock)]
    assert dilations[0] == dilations[1] and (4, 4) in dilations[0] and dilations[0][0] == (1, 1)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('kind', ['OREPAResNet', 'OREPAResNeXt'])
def test_deformable_convolutions_and_plugins(scope, kind):
    dcn = dict(type='DCN', deform_groups=1, fallback_on_stride=False)
    plugin = dict(cfg=dict(type='ContextBlock', ratio=1 / 4), stages=(False, True, True, True), position='after_conv3')
    options = dict(groups=2) if kind == 'OREPAResNeXt' else dict(plugins=[plugin])
    net = build(scope, kind=kind, dcn=dcn, stage_with_dcn=(False, True, True, True), **options)
    block = net.layer2[0]
    assert type(block.conv2).__name__ == 'DeformConv2dPack'
    assert isinstance(block.conv1, OREPAConv2d) and isinstance(block.conv3, OREPAConv2d)
    assert type(net.layer1[0].conv2) is OREPAConv2d and hasattr(block, 'context_block') == ('plugins' in options)
    assert isinstance(block.downsample[0], OREPAConv2d)
    x = torch.randn(1, 3, 128, 128)
    expected = net(x)[-1]
    orepa_mm.reparameterize(net)
    assert relative(net(x)[-1], expected) < 1e-4  # sampling offsets amplify the rounding


def test_checkpoints_move_between_the_toolboxes():
    states = {scope: build(scope).state_dict() for scope in SCOPES}
    for source in SCOPES:
        for target in SCOPES:
            result = build(target).load_state_dict(states[source])
            assert not result.missing_keys and not result.unexpected_keys


@pytest.mark.parametrize('scope', SCOPES)
def test_diverse_branch_baseline(scope):
    """What its plain form computes is asked in test_methods.py."""
    net = build(scope, 50, method='DBB', train=True)
    replaced = {name for name, m in net.named_modules() if isinstance(m, DBBConv2d)}
    wanted = {name for name, m in build(scope, 50, method='none').named_modules() if getattr(m, 'kernel_size', None) == (3, 3)}
    assert replaced == wanted - {'maxpool'}
    assert type(net.bn1) is torch.nn.BatchNorm2d and type(net.layer1[0].norm2) is torch.nn.Identity
    net.init_weights()
    net(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize('options', [dict(method='none'), dict(conv_cfg=dict(type='Conv2d'))], ids=str)
def test_method_none_is_the_stock_network(scope, options):
    stock = importlib.import_module(f'{scope}.models.backbones').ResNet(depth=50, **NARROW)
    names = [(name, p.shape) for name, p in build(scope, **options).named_parameters()]
    assert names == [(name, p.shape) for name, p in stock.named_parameters()]


def test_unknown_method():
    with pytest.raises(ValueError, match="method='DDB' is unknown; choose from ACNet, DBB, ExpandNet, OREPA, RefConv, none"):
        build('mmdet', method='DDB')


@pytest.mark.parametrize(('scope', 'method'), [*((scope, 'OREPA') for scope in SCOPES), ('mmdet', 'DBB'), ('mmdet', 'none')])
def test_resnext(scope, method):
    options = dict(groups=8, stem_channels=16, base_channels=16)  # a quarter of the published width
    net = importlib.import_module(f'{scope}.registry').MODELS.build(dict(type='OREPAResNeXt', depth=50, method=method, **options))
    net.eval()
    stock = importlib.import_module(f'{scope}.models.backbones').ResNeXt(depth=50, **options)
    x = torch.randn(1, 3, 64, 64)
    expected = net(x)[-1]
    orepa_mm.reparameterize(net)
    assert relative(net(x)[-1], expected) < 1e-5
    kernels = {name: m.weight.shape for name, m in stock.named_modules() if type(m) is torch.nn.Conv2d}
    assert kernels == {name: m.weight.shape for name, m in net.named_modules() if type(m) is torch.nn.Conv2d}
    assert net.layer1[0].conv2.groups == 8


def test_resnext_is_a_32x4d_unless_told_otherwise():
    with torch.device('meta'):
        net = importlib.import_module('mmdet.registry').MODELS.build(dict(type='OREPAResNeXt', depth=50, method='none'))
    assert net.layer1[0].conv2.groups == 32 and net.layer1[0].conv2.in_channels == 128


@pytest.mark.parametrize(('kind', 'options'), [('OREPASEResNet', {}), ('OREPASEResNeXt', dict(groups=8))])
def test_squeeze_and_excitation(kind, options):
    net = build('mmpretrain', kind=kind, **options).double()
    stock = getattr(importlib.import_module('mmpretrain.models.backbones'), kind.removeprefix('OREPA'))
    assert isinstance(net, stock)
    assert type(net.layer1[0].se_layer.conv1.conv) is torch.nn.Conv2d  # excitation weights are no feature maps
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = net(x)[-1]
    orepa_mm.reparameterize(net)
    assert relative(net(x)[-1], expected) < 1e-10
    kernels = {name: m.weight.shape for name, m in stock(depth=50, **NARROW, **options).named_modules() if type(m) is torch.nn.Conv2d}
    assert kernels == {name: m.weight.shape for name, m in net.named_modules() if type(m) is torch.nn.Conv2d}


@pytest.mark.parametrize('name', ['mmdet.OREPAResNeXt', 'mmpretrain.OREPARepVGG', 'mmdet.ResNet', 'mmseg.ResNet'])
def test_the_documented_line_holds_for_bare_backbones(name):
    """The stock ``train()`` and ``eval()`` of backbones return nothing."""
    scope, kind = name.split('.')
    options = dict(arch='A0', base_channels=8) if 'VGG' in kind else dict(depth=50, **NARROW)
    net = importlib.import_module(f'{scope}.registry').MODELS.build(dict(type=kind, **options))
    if kind.startswith('OREPA'):
        assert orepa_mm.reparameterize(net.eval()) is net and not any(isinstance(m, OREPAConv2d) for m in net.modules())
        return
    for call in (orepa_mm.reparameterize, lambda model: orepa_mm.reparameterized(model).__enter__()):
        with pytest.raises(FuseError, match=r'call model.eval\(\) on a line of its own'):
            call(orepa_mm.expand(net).eval() if call is orepa_mm.reparameterize else net.eval())


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', ['mmdet.ResNet', 'mmseg.ResNet', 'mmpretrain.RepVGG'])
def test_names_that_a_stock_network_shares_with_the_training_form_mean_the_same(name, method):
    """Somebody else's loader that is not strict takes norms, and no branch for a kernel."""
    scope, kind = name.split('.')
    options = dict(arch='A0', base_channels=8) if kind == 'RepVGG' else dict(depth=18, deep_stem=scope == 'mmseg', **NARROW)
    ours = options | (dict(conv_cfg=dict(type=METHODS[method], plain_sizes=(1,))) if kind == 'RepVGG' else dict(method=method))
    models = importlib.import_module(f'{scope}.registry').MODELS
    net, stock = models.build(dict(type=f'OREPA{kind}', **ours)).eval(), models.build(dict(type=kind, **options))
    layers = {path for path, module in net.named_modules() if isinstance(module, ReparameterizableConv2d)}
    state = net.state_dict()
    taken = set(stock.state_dict()) & set(state)
    plain = orepa_mm.reparameterize(net).state_dict()
    assert layers and taken and not {f'{path}.weight' for path in layers} & taken
    assert all(torch.equal(state[key], plain[key]) for key in taken & set(plain))
