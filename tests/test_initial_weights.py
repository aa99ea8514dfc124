"""init='balanced': layers and backbones start at the kernels the plain network would start at."""

import math

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

import orepa_mm
from orepa_mm import OREPAConv2d, reparameterize
from orepa_mm.checkpoints.checking import check_pretrained
from orepa_mm.errors import LayerError
from orepa_mm.layers import squeezed_conv

EXACT = 1e-12  # float64; dividing by a scale and multiplying again rounds


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


def seeded(build, *args, **kwargs):
    torch.manual_seed(3)
    return build(*args, **kwargs)


@pytest.mark.parametrize('branches', ['full', ('origin', 'avg')])
@pytest.mark.parametrize(
    ('shape', 'options'),
    [
        ((6, 8, 3), dict(groups=2, bias=False)),
        ((6, 8, 1), dict(stride=2)),
        ((6, 8, 5), dict(padding='same', padding_mode='reflect')),
        ((3, 32, 7), dict(stride=2, padding=3)),
    ],
)
def test_a_layer_starts_as_the_plain_one_from_the_same_seed(shape, options, branches):
    options |= dict(dtype=torch.float64)
    plain = seeded(nn.Conv2d, *shape, **options)
    layer = seeded(OREPAConv2d, *shape, **options, branches=branches, init='balanced')
    assert (layer.weight - plain.weight).abs().max() < EXACT
    assert plain.bias is None or torch.equal(layer.bias, plain.bias)
    seeded(plain.reset_parameters)
    seeded(layer.reset_parameters)
    assert (layer.weight - plain.weight).abs().max() < EXACT
    assert (orepa_mm.reparameterize(nn.Sequential(layer).eval())[0].weight - plain.weight).abs().max() < EXACT


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='OREPAResNet', depth=18, base_channels=16, stem_channels=16, plain_stem=True, branches='light'),
        dict(type='OREPARepVGG', arch='A0'),
    ],
    ids=str,
)
@pytest.mark.parametrize('init_cfg', [None, [dict(type='Normal', layer='Conv2d', std=0.03)]], ids=['own', 'given'])
def test_a_backbone_draws_what_the_stock_one_draws(backbone, init_cfg):
    model = MODELS.build(backbone | dict(init='balanced') | ({} if init_cfg is None else dict(init_cfg=init_cfg)))
    model.init_weights()
    layers = [module for module in model.modules() if isinstance(module, OREPAConv2d)]
    assert len(layers) >= 16 and all(layer.init == 'balanced' for layer in layers)
    for layer in layers:
        expected = 0.03 if init_cfg else math.sqrt(2 / (layer.out_channels // layer.groups * math.prod(layer.kernel_size)))
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.15)  # of 400 values and more
        values = layer.weight.flatten()
        assert values.abs().max() > 2.2 * expected  # normal, where torch's own draw ends at 1.7


class Backbone(BaseModule):
    """One convolution as mmengine's and as mmcv's modules have them, and where neither draws it."""

    def __init__(self, conv_cfg, init_cfg):
        super().__init__(init_cfg)
        self.bare = build_conv_layer(conv_cfg, 6, 9, 3)
        self.module = ConvModule(9, 9, 3, conv_cfg=conv_cfg, norm_cfg=dict(type='BN'), act_cfg=dict(type='LeakyReLU'))
        self.rest = nn.Sequential(ConvModule(9, 9, 1, conv_cfg=conv_cfg), build_conv_layer(conv_cfg, 9, 9, 3))


CONV = dict(layer='Conv2d')
INIT_CFGS = [
    None,
    dict(type='Kaiming', **CONV),
    dict(type='Normal', std=0.5, bias=3, **CONV),
    [dict(type='TruncNormal', std=0.1, **CONV), dict(type='Constant', val=2, layer='BatchNorm2d')],
    dict(type='Normal', std=0.1, **CONV, override=dict(name='bare', type='Constant', val=0.1, bias=2)),
]


@pytest.mark.parametrize('init_cfg', INIT_CFGS, ids=str)
@pytest.mark.parametrize('start', ['balanced', 'shared'])
def test_init_cfg_of_a_custom_backbone(init_cfg, start):
    """Every kernel and bias is what the stock one is from the same seed."""
    plain = Backbone(dict(type='Conv2d'), init_cfg)
    net = Backbone(dict(type='OREPAConv2d', init='balanced', start=start), init_cfg)
    net.load_state_dict(plain.state_dict())
    seeded(plain.init_weights)
    seeded(net.init_weights)
    for name, value in reparameterize(net.eval()).state_dict().items():
        assert torch.allclose(value, plain.state_dict()[name], atol=1e-6, rtol=1e-5), name


def test_what_plain_pytorch_initialises():
    def draw(module):
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            nn.init.ones_(module.bias)

    for make in (lambda: OREPAConv2d(4, 8, 3, init='balanced'), lambda: orepa_mm.expand(nn.Conv2d(4, 8, 3))):
        plain, model = nn.Sequential(nn.Conv2d(4, 8, 3)), nn.Sequential(make())
        seeded(plain.apply, draw)
        assert seeded(model.apply, draw) is model
        assert torch.allclose(model[0].weight, plain[0].weight, atol=1e-6) and torch.equal(model[0].bias, plain[0].bias)


@pytest.mark.parametrize(('init', 'lines'), [(None, 1), ('published', 0), ('balanced', 0)])
def test_the_log_says_what_passes_over_published_branches(init, lines, caplog, tmp_path):
    squeezed_conv._say_passed_over.cache_clear()
    MMLogger.get_instance(f'run_{init}', log_file=str(tmp_path / 'run.log'))  # the current one from now on
    net = Backbone(dict(type='OREPAConv2d', init=init), dict(type='Normal', **CONV))
    net.init_weights()
    net.apply(lambda module: None)
    assert (net.bare.kernel.parts()['avg'].abs().max() == 0) == (init == 'balanced')
    assert [record.getMessage().split(':')[0] for record in caplog.records] == ['OREPAConv2d'] * lines
    assert (tmp_path / 'run.log').read_text().count('OREPAConv2d: an initialiser of plain convolutions') == lines


@pytest.mark.parametrize('given', [{}, dict(init_cfg=dict(type='Normal', **CONV))], ids=['own', 'given'])
def test_our_backbones_say_it_of_an_init_cfg_that_is_given(given, caplog):
    squeezed_conv._say_passed_over.cache_clear()
    MODELS.build(dict(type='OREPAResNet', depth=18, base_channels=4, **given)).init_weights()
    assert len(caplog.records) == len(given)


def test_a_checkpoint_is_not_drawn_over(tmp_path):
    options = dict(type='OREPAResNet', depth=18, base_channels=16, stem_channels=32, init='balanced')
    trained = MODELS.build(options)
    torch.save(trained.state_dict(), tmp_path / 'weights.pth')
    model = MODELS.build(options | dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))))
    model.init_weights()
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize('options', [dict(plain_stem=True), {}, dict(deep_stem=True), dict(in_channels=4)])
def test_weights_for_pictures_of_other_channels(options, tmp_path):
    """All but the stem's first kernel is loaded, as into the stock backbone."""
    narrow = dict(depth=18, base_channels=16, stem_channels=32, deep_stem='deep_stem' in options)
    weights = MODELS.build(dict(type='ResNet', **narrow)).state_dict()
    torch.save(weights, tmp_path / 'stock.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth'))
    model = MODELS.build(dict(dict(narrow, in_channels=1, init_cfg=init_cfg), type='OREPAResNet', **options))
    check_pretrained(model)
    model.init_weights()
    model.eval()
    loaded = orepa_mm.reparameterize(model).state_dict()
    left = [
        name for name, value in weights.items() if loaded[name].shape != value.shape or not torch.allclose(loaded[name], value, atol=1e-5)
    ]
    assert left == ['stem.0.conv.weight' if 'deep_stem' in options else 'conv1.weight']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(init='zero'), "init='zero' is unknown; choose from published, balanced"),
        (dict(start='zero'), "start='zero' is unknown; choose from balanced, zeros, shared"),
        (dict(branches=('avg', 'point')), "cannot add up to any given kernel; it takes 'origin'"),
        (dict(out_channels=16, kernel_size=7), 'at least 27 output channels'),  # a narrow stem
        (dict(type='OREPAResNet', depth=18, method='DBB'), "init='balanced' is for method='OREPA', not 'DBB'"),
        (dict(type='OREPAResNet', depth=18, method='none'), "init='balanced' is for method='OREPA', not 'none'"),
        (dict(type='OREPARepVGG', arch='A0', method='RepVGG'), "init='balanced' is for method='OREPA', not 'RepVGG'"),
        (dict(type='OREPAResNet', depth=18, conv_cfg=dict(type='Conv2d')), 'give the init in the conv_cfg'),
    ],
)
def test_bad_input(options, message):
    options = dict(init='balanced') | options
    with pytest.raises((LayerError, ValueError), match=message):
        if 'type' in options:
            MODELS.build(options)
        else:
            OREPAConv2d(**dict(in_channels=3, out_channels=3, kernel_size=3) | options)
