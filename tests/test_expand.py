"""Branches on trained plain networks: what they compute stays, and training goes on."""

import importlib
import json
import logging

import pytest
import timm
import torch
import torchvision
from conftest import done, few, refused
from method_case import relative
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from small_models import stock
from test_reparameterize import settle
from torch import nn

from orepa_mm import DBBConv2d, OREPAConv2d, expand, prune_branches, reparameterize
from orepa_mm.checkpoints.checking import check_state_dict
from orepa_mm.errors import BranchesError, CheckpointError, ExpandError, FuseError, PlainKernelError
from orepa_mm.layers import METHODS, ReparameterizableConv2d
from orepa_mm.layers.kernels import PRESETS, STARTS
from orepa_mm.reparam.comparison import largest_difference


def branches(model: nn.Module) -> int:
    return sum(isinstance(module, OREPAConv2d) for module in model.modules())


def plain_net() -> nn.Module:
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1, groups=2, padding_mode='reflect'),
            nn.BatchNorm2d(8),
        )
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('start', STARTS)
def test_half_precision_keeps_its_digits(start, dtype):
    """With the kernel in the plain branch it comes back bit for bit; shared out, to a rounding of the largest weight."""
    for conv in (nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(3, 27, 7)):
        conv = conv.to(dtype)
        layer = OREPAConv2d.from_conv(conv, start)
        assert layer.weight.dtype == dtype
        if start == 'shared':
            assert relative(layer.weight, conv.weight) < 2 * torch.finfo(dtype).eps
        else:
            assert torch.equal(layer.weight, conv.weight)


def test_what_stays():
    model = plain_net()
    model[0].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    calls = []
    handle = model[3].register_forward_hook(lambda *_: calls.append(1))
    model = nn.Sequential(model, nn.Sequential(model[1]), model[0])
    shared = model[0][0]
    expand(model, kernel_sizes=(1, 3, 7))
    assert model[0][0] is model[2] and isinstance(model[2], OREPAConv2d) and model[2] is not shared
    assert not any(p.requires_grad for p in model[2].parameters())
    conv = model[0][3]
    assert not conv.bias.requires_grad and all(p.requires_grad for p in conv.kernel.parameters())
    model[0](torch.randn(1, 3, 8, 8))
    handle.remove()
    model[0](torch.randn(1, 3, 8, 8))
    assert len(calls) == 1 and type(model[0][1]) is nn.BatchNorm2d
    bare = nn.Conv2d(3, 3, 3)
    bare.register_forward_hook(lambda *_: calls.append(2))
    bare = expand(bare, branches='light')
    bare(torch.randn(1, 3, 8, 8))
    assert calls == [1, 2] and bare.kernel.branches == PRESETS['light']


@pytest.mark.parametrize(
    ('options', 'expanded'),
    [
        (dict(kernel_sizes=(3,)), {'4'}),
        (dict(pattern=r'^[03]$'), {'3'}),
        (dict(pattern=r'^[03]$', kernel_sizes=(1, 7)), {'0', '3'}),
        (dict(where=lambda path, conv: conv.groups == 1), {'3'}),
        (dict(first_layer=False), {'3', '4'}),
        (dict(kernel_sizes=(1, 3), pattern='4'), {'4'}),
    ],
)
def test_which_layers(options, expanded):
    model = expand(plain_net(), **options)
    assert {name for name, module in model.named_modules() if isinstance(module, OREPAConv2d)} == expanded


class Samepad(nn.Conv2d):
    pass


def test_layers_that_stay_plain_are_listed(caplog):
    tied = nn.Conv2d(4, 4, 3)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 2),
        nn.Conv2d(4, 4, (1, 3)),
        nn.ConvTranspose2d(4, 4, 3),
        Samepad(4, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
        tied,
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 8, 7),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 72, 7),
    )
    model[7].weight = tied.weight
    with caplog.at_level(logging.INFO, logger='orepa_mm'):
        expand(model)
    assert branches(model) == 1 and isinstance(model[9], OREPAConv2d)
    assert 'Expanded 1 convolutions into OREPA layers: build the optimizer now, not before' in caplog.text
    for path, reason in {
        '0': '2 x 2', '1': '1 x 3', '2': 'transposed', '3': 'is a Samepad', '4': 'computed', '5': 'computed', '6': 'shares its weight',
        '7': 'shares its weight', '8': 'at least 36 output channels', '10': 'as a product of 3 kernels',
    }.items():  # fmt: skip
        assert any(f'"{path}"' in line and reason in line for line in caplog.text.splitlines()), (path, caplog.text)


def several() -> nn.Module:
    integers = nn.Conv2d(2, 2, 3)
    integers.weight = nn.Parameter(torch.ones(2, 2, 3, 3, dtype=torch.int8), requires_grad=False)
    return nn.Sequential(nn.ConvTranspose2d(2, 2, 3), integers, nn.Conv2d(2, 2, 4), nn.Conv2d(2, 2, 2))


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        (lambda: nn.Linear(2, 2), {}, 'nothing to expand: no convolution'),
        (several, {}, 'nothing to expand: "0" is transposed; "1" has a weight of torch.int8; "2" has a kernel of 4 x 4, [^;]*$'),
        (plain_net, dict(pattern='xyz'), 'nothing to expand: no convolution was chosen'),
        (plain_net, dict(start='random'), "start='random' is unknown; choose from balanced, zeros, shared"),
        (plain_net, dict(method='OREPAA'), "method='OREPAA' is unknown; choose from ExpandNet, OREPA, RefConv"),
        (lambda: nn.Conv2d(2, 2, (3, 1)), {}, 'a kernel of 3 x 1'),
        (lambda: expand(plain_net()), {}, 'nothing to expand'),
        (plain_net, dict(method='ExpandNet', branches='light'), r"^branches='light' is for method='OREPA', not 'ExpandNet'$"),
    ],
)
def test_bad_input(model, options, message):
    with pytest.raises(ExpandError, match=message):
        expand(model(), **options)


def test_a_layer_chosen_by_its_path_and_itself():
    model, seen = plain_net(), []
    expand(model, where=lambda path, conv: seen.append((path, conv)) or path == '3', method='ExpandNet')
    assert [path for path, _ in seen] == ['0', '3', '4'] and seen[0][1] is model[0] and type(model[3]) is METHODS['ExpandNet']


def test_balanced_steps_are_as_long_as_a_plain_layers():
    torch.manual_seed(0)
    for shape in ((16, 16, 3), (16, 32, 1), (32, 16, 1)):
        conv = nn.Conv2d(*shape, bias=False)
        layer = OREPAConv2d.from_conv(conv)
        gradient = torch.randn_like(conv.weight)
        moved = []
        for module in (conv, layer):
            before = module.weight.detach().clone()
            module.weight.backward(gradient)
            torch.optim.SGD(module.parameters(), 1e-3).step()
            moved.append((module.weight - before).norm())
        assert 0.8 < moved[1] / moved[0] < 1.25, shape


@pytest.mark.parametrize('start', STARTS)
def test_every_branch_takes_part_after_a_few_steps(start):
    layer, x = OREPAConv2d.from_conv(nn.Conv2d(8, 8, 3), start), torch.randn(2, 8, 9, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.9)
    for _ in range(3):
        layer(x).square().mean().backward()
        optimizer.step()
    assert all(p.abs().max() > 0 for p in layer.kernel.parameters())


# Whole stock models.

STOCK_MODELS = [
    *(f'torchvision/{name}' for name in ('resnext50_32x4d', 'mobilenet_v2', 'densenet121', 'squeezenet1_1')),
    *(f'timm/{name}' for name in ('resnet26', 'repvgg_a0', 'ghostnet_050', 'resnest14d')),
    'mmdet/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'mmdet/yolox/yolox_tiny_8xb8-300e_coco',
    'mmseg/deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024',
    'mmseg/bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024',
    'mmpretrain/shufflenet_v2/shufflenet-v2-1x_16xb64_in1k',
    'mmpretrain/seresnet/seresnet50_8xb32_in1k',
]


def build(name: str) -> tuple[nn.Module, callable]:
    """A stock model in eval mode and a function that runs it."""
    library, _, path = name.partition('/')
    if library in ('torchvision', 'timm'):
        make = timm.create_model if library == 'timm' else torchvision.models.get_model
        return settle(make(path)), lambda model, x: model(x)
    init_default_scope(library)
    cfg = stock(library, path).model
    cfg.pop('data_preprocessor', None)
    model = revert_sync_batchnorm(importlib.import_module(f'{library}.registry').MODELS.build(cfg))
    return settle(model), lambda model, x: model(x, mode='tensor')


@pytest.mark.parametrize('name', few(STOCK_MODELS, *STOCK_MODELS[::3]))
def test_stock_models(name):
    model, run = build(name)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # Norms as trained ones: the statistics of what they see.
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
        model.train()
        run(model, torch.randn(2, 3, 64, 64))
        model.eval()
        expected = run(model, x)
        expand(model)
        assert branches(model) > 3
        assert largest_difference(expected, run(model, x)) < 1e-5
        assert largest_difference(expected, run(reparameterize(model), x)) < 1e-5


# Loading.


@pytest.mark.parametrize('scope', few(['mmdet', 'mmseg', 'mmpretrain'], 'mmdet'))
def test_stock_weights_by_init_cfg(scope, tmp_path):
    registry = importlib.import_module(f'{scope}.registry').MODELS
    options, path = dict(depth=50, out_indices=(0, 1, 2, 3), stem_channels=64, base_channels=8), str(tmp_path / 'stock.pth')
    stock = settle(registry.build(dict(type='ResNet', **options)))
    torch.save(stock.state_dict(), path)
    net = registry.build(dict(type='OREPAResNet', init_cfg=dict(type='Pretrained', checkpoint=path), **options))
    net.init_weights()
    net.eval()
    x = torch.randn(1, 3, 64, 64)
    assert branches(net) == 53 and largest_difference(stock(x), net(x)) < 1e-5


@pytest.mark.parametrize('start', STARTS)
def test_stock_weights_start_as_the_config_says(start, tmp_path):
    """The same branches as those that expand makes of the stock network."""
    from mmpretrain.registry import MODELS

    stock = MODELS.build(dict(type='ResNet', depth=18, base_channels=8, stem_channels=8))
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth'))
    net = MODELS.build(
        dict(type='OREPAResNet', depth=18, base_channels=8, stem_channels=8, plain_stem=True, start=start, init_cfg=init_cfg)
    )
    net.init_weights()
    expand(stock, kernel_sizes=(3,), start=start)
    loaded, expanded = net.state_dict(), stock.state_dict()
    drawn = ('depthwise', 'freq')  # of branches that add nothing at the start
    assert loaded.keys() == expanded.keys()
    assert [name for name, value in expanded.items() if not torch.equal(loaded[name], value) and not name.endswith(drawn)] == []
    if start == 'zeros':  # it makes a difference
        assert not torch.equal(loaded['layer1.0.conv1.kernel.scale'], expand(nn.Conv2d(8, 8, 3)).kernel.scale)


def test_a_plain_kernel_with_a_bias_for_a_layer_without_one():
    net = nn.ModuleDict(dict(conv=OREPAConv2d(4, 8, 3, bias=False)))
    with pytest.raises(PlainKernelError, match='deployed with its norms folded'):
        net.load_state_dict({'conv.weight': torch.zeros(8, 4, 3, 3), 'conv.bias': torch.zeros(8)}, strict=False)


def test_the_check_before_a_run_knows_plain_kernels_of_another_shape():
    net = nn.ModuleDict(dict(conv=OREPAConv2d(4, 8, 3), head=nn.Linear(2, 2)))
    state = {'conv.weight': torch.zeros(8, 4, 5, 5), 'conv.bias': torch.zeros(8)} | {
        f'head.{k}': v for k, v in net.head.state_dict().items()
    }
    check_state_dict(net, state, 'other.pth', partial=True)  # as of any other weight
    with pytest.raises(CheckpointError, match=r'other.pth: .*1 of another shape \(conv.weight \(8, 4, 5, 5\) for \(8, 4, 3, 3\)\)'):
        check_state_dict(net, state, 'other.pth')


def test_a_stem_with_too_few_channels_says_what_to_do():
    net = nn.ModuleDict(dict(conv=OREPAConv2d(3, 16, 7, bias=False)))
    with pytest.raises(PlainKernelError, match='at least 27 output channels; set plain_stem=True'):
        net.load_state_dict({'conv.weight': torch.zeros(16, 3, 7, 7)})


# Runs of the tools.

EXPAND = 'tools/model_converters/expand_checkpoint'


def test_a_stock_detector_goes_on_with_branches(tools, tmp_path):
    """load_from a stock checkpoint: the first validation gives the stock detector's metrics, and training goes on."""
    plain = {'model.backbone.type': 'ResNet'}
    done(tools.train('coco', tmp_path / 'stock', '--no-validate', options=plain | {'custom_hooks': '[]'}))
    stock, metrics = tmp_path / 'stock' / 'last.pth', []
    for form, options in (('--no-reparameterize', plain), ('--reparameterize', {}), ('--no-reparameterize', {})):
        path = tmp_path / f'{len(metrics)}.json'
        done(tools.test('coco', stock, tmp_path / path.stem, form, '--metrics', path, options=options))
        metrics.append({key: value for key, value in json.loads(path.read_text()).items() if 'time' not in key})
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3) and metrics[2] == pytest.approx(metrics[0], abs=1e-3)
    done(tools.train('coco', tmp_path / 'run', '--no-validate', options={'load_from': str(stock)}))
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'OREPAResNet: 17 plain convolutions of the checkpoint are expanded' in log
    # Its optimizer's state belongs to the plain parameters.
    refused(tools.train('coco', tmp_path / 'again', '--resume', stock), 'cannot be resumed', 'load_from instead')


def test_expanding_a_file(tools, tmp_path):
    resnet = tmp_path / 'resnet.pth'
    torch.save(torchvision.models.resnet18().state_dict(), resnet)
    done(tools.run(EXPAND, 'none', resnet, tmp_path / 'out.pth', '--start', 'zeros'))
    expanded = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    assert expanded['backbone.layer1.0.conv2.kernel.scale'][0].unique() == STARTS['zeros'][0]['origin']
    assert 'backbone.layer1.0.conv2.kernel.origin' in expanded and expanded['head.fc.weight'].shape == (1000, 512)
    for arguments, message in (
        (('none', resnet, tmp_path / 'out.pth'), '--force'),
        (('none', tmp_path / 'out.pth', tmp_path / 'twice.pth'), 'nothing to expand'),
        (('none', tmp_path / 'absent.pth', tmp_path / 'x.pth'), 'no such checkpoint'),
        (('none', resnet, tmp_path / 'x.pth', '--start', 'zero'), "invalid choice: 'zero'"),
        ((tools.CONFIGS['imagenet'], resnet, tmp_path / 'x.pth'), 'nothing to expand'),
    ):
        status, error = tools.run(EXPAND, *arguments)
        assert status == 2 and message in error.splitlines()[-1], error
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.pth', 'resnet.pth']


BLOCKS = {  # of timm, which merge their own branches
    'MobileOneBlock': lambda: timm.models.byobnet.MobileOneBlock(8, 8),
    'RepVggBlock': lambda: timm.models.byobnet.RepVggBlock(8, 8),
    'RepVggDw': lambda: timm.models.repvit.RepVggDw(8, 3),
    'ReparamLargeKernelConv': lambda: timm.models.fastvit.ReparamLargeKernelConv(8, 8, 7, 1, 8, 3),
}


@pytest.mark.parametrize('block', BLOCKS)
def test_blocks_that_have_branches_are_named_and_timm_merges_all(block, caplog):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), BLOCKS[block](), DBBConv2d(8, 8, 3, padding=1)).eval()
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    expand(model, where=lambda path, conv: not path.startswith('2'))
    assert f'1 blocks have branches already ({block})' in caplog.text and relative(model(x), expected) < 1e-5
    merged = timm.utils.model.reparameterize_model(model)
    assert not any(isinstance(module, ReparameterizableConv2d) for module in merged.modules())
    assert relative(merged(x), expected) < 1e-5
    reparameterize(model)
    assert f"{{'{block}': 1}}" in caplog.text and relative(model(x), expected) < 1e-5
    with pytest.raises(FuseError, match=r'model\.eval\(\)'):
        timm.utils.model.reparameterize_model(nn.Sequential(DBBConv2d(8, 8, 1)))


class Tied(nn.Module):
    """One weight under two names, another one that a part without a ``weight`` has, and a bias of two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.again = self.first.weight
        self.part = nn.ParameterList([self.second.weight])
        self.free = nn.Conv2d(4, 4, 3, padding=1)
        self.free.bias = self.third.bias


def test_what_is_tied_stays_tied(caplog):
    model = Tied()
    with caplog.at_level(logging.INFO, logger='orepa_mm'):
        expand(model)
    assert branches(model) == 2 and model.again is model.first.weight and model.part[0] is model.second.weight
    assert caplog.text.count('shares its weight') == 2 and model.free.bias is model.third.bias
    computed = nn.Conv2d(4, 4, 3)
    nn.utils.parametrize.register_parametrization(computed, 'bias', nn.Tanh())
    with pytest.raises(ExpandError, match='bias that is computed'):
        expand(nn.Sequential(computed))


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize('change', [expand, reparameterize, lambda model: prune_branches(model, 1)], ids=['expand', 'back', 'prune'])
def test_an_optimizer_that_holds_what_was_replaced_is_refused(change, optimizer):
    """Not one whose parameters still get gradients, elsewhere."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3) if change is expand else OREPAConv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    other = nn.Sequential(model[0])
    before, elsewhere = (getattr(torch.optim, optimizer)(each.parameters(), lr=0.1) for each in (model, other))
    x = torch.randn(2, 4, 9, 9)
    change(model)
    if not isinstance(other[0], OREPAConv2d) or change is reparameterize:
        other(x).sum().backward()
        elsewhere.step()
        elsewhere.zero_grad()
    model(x).sum().backward()
    with pytest.raises(BranchesError, match=r'that (expand|reparameterize|prune_branches) has replaced in the model'):
        before.step()
    getattr(torch.optim, optimizer)(model.parameters(), lr=0.1).step()
