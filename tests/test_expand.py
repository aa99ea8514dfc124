"""Branches on trained plain networks: what they compute stays, and training goes on."""

import copy
import importlib
import importlib.util
import logging
from pathlib import Path

import pytest
import timm
import torch
from conftest import few
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from test_reparameterize import settle
from torch import nn

import orepa_mm
from orepa_mm import DBBConv2d, OREPAConv2d, expand, prune_branches, reparameterize
from orepa_mm.checkpoints.checking import check_state_dict
from orepa_mm.errors import BranchesError, CheckpointError, ExpandError, FuseError, PlainKernelError
from orepa_mm.layers import METHODS, ReparameterizableConv2d
from orepa_mm.layers.kernels import STARTS
from orepa_mm.reparam.comparison import largest_difference


def relative(actual, expected):
    return largest_difference(expected, actual)


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


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('start', STARTS)
def test_there_and_back_again(start, training):
    model = plain_net().double().train(training)
    reference = copy.deepcopy(model)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    assert expand(model, start=start, kernel_sizes=(1, 3, 7)) is model and branches(model) == 3
    expected, actual = reference(x), model(x)
    assert relative(actual, expected) < 1e-10
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, actual)]
    assert relative(gradients[1], gradients[0]) < 1e-10
    reparameterize(model)
    assert not branches(model) and model.state_dict().keys() == reference.state_dict().keys()
    for key, value in model.state_dict().items():
        if not key.endswith(('running_mean', 'running_var', 'num_batches_tracked')):
            assert relative(value, reference.state_dict()[key]) < 1e-10


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


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        (lambda: nn.Linear(2, 2), {}, 'nothing to expand: no convolution'),
        (lambda: nn.Sequential(nn.Conv2d(2, 2, 2)), {}, 'nothing to expand: "0" has a kernel of 2 x 2'),
        (plain_net, dict(pattern='xyz'), 'nothing to expand: no convolution was chosen'),
        (plain_net, dict(start='random'), "start='random' is unknown; choose from balanced, zeros, shared"),
        (plain_net, dict(method='OREPAA'), "method='OREPAA' is unknown; choose from ExpandNet, OREPA, RefConv"),
        (lambda: nn.Conv2d(2, 2, (3, 1)), {}, 'a kernel of 3 x 1'),
        (lambda: expand(plain_net()), {}, 'nothing to expand'),
    ],
)
def test_bad_input(model, options, message):
    with pytest.raises(ExpandError, match=message):
        expand(model(), **options)


def test_the_first_three_that_stay_plain_are_named():
    integers = nn.Conv2d(2, 2, 3)
    integers.weight = nn.Parameter(torch.ones(2, 2, 3, 3, dtype=torch.int8), requires_grad=False)
    reasons = ['is transposed', 'has a weight of torch.int8', 'has a kernel of 4 x 4, and branches are centred on a square odd one']
    named = '; '.join(f'"{i}" {reason}' for i, reason in enumerate(reasons))
    with pytest.raises(ExpandError, match=f'^the model has nothing to expand: {named}$'):
        expand(nn.Sequential(nn.ConvTranspose2d(2, 2, 3), integers, nn.Conv2d(2, 2, 4), nn.Conv2d(2, 2, 2)))


def test_a_layer_chosen_by_its_path_and_itself():
    model, seen = plain_net(), []
    expand(model, where=lambda path, conv: seen.append((path, conv)) or path == '3', method='ExpandNet')
    assert [path for path, _ in seen] == ['0', '3', '4'] and seen[0][1] is model[0] and type(model[3]) is METHODS['ExpandNet']
    with pytest.raises(ExpandError, match=r"^branches='light' is for method='OREPA', not 'ExpandNet'$"):
        expand(plain_net(), method='ExpandNet', branches='light')


@pytest.mark.parametrize('start', STARTS)
def test_a_hundred_steps(start):
    torch.manual_seed(0)
    model = nn.Sequential(plain_net(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).train()
    expand(model, start=start)
    x, y = torch.randn(32, 3, 16, 16), torch.randint(4, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses))) and losses[-1] < 0.7 * losses[0]
    kernel = model[0][4].kernel
    assert all(p.abs().max() > 0 for p in kernel.parameters())  # every branch takes part by now


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


# Whole stock models.

TORCHVISION = (
    'resnet18',
    'resnext50_32x4d',
    'mobilenet_v2',
    'densenet121',
    'regnet_y_400mf',
    'efficientnet_b0',
    'squeezenet1_1',
)
TIMM = ('resnet26', 'mobilenetv3_small_050', 'repvgg_a0', 'ghostnet_050', 'dla34', 'resnest14d')
MM = (
    'mmdet/retinanet/retinanet_r18_fpn_1x_coco',
    'mmdet/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'mmdet/yolox/yolox_tiny_8xb8-300e_coco',
    'mmseg/pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024',
    'mmseg/deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024',
    'mmseg/bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024',
    'mmpretrain/mobilenet_v2/mobilenet-v2_8xb32_in1k',
    'mmpretrain/shufflenet_v2/shufflenet-v2-1x_16xb64_in1k',
    'mmpretrain/repvgg/repvgg-A0_8xb32_in1k',
    'mmpretrain/seresnet/seresnet50_8xb32_in1k',
)


def build(name: str) -> tuple[nn.Module, callable]:
    """A stock model in eval mode and a function that runs it."""
    library, _, path = name.partition('/')
    if library in ('torchvision', 'timm'):
        if library == 'torchvision':
            from torchvision import models

            model = getattr(models, path)()
        else:
            import timm

            model = timm.create_model(path)
        return settle(model), lambda model, x: model(x)
    package = Path(importlib.util.find_spec(library).origin).parent
    cfg = Config.fromfile(package / '.mim' / 'configs' / f'{path}.py')
    init_default_scope(library)
    cfg.model.pop('data_preprocessor', None)
    from mmengine.model import revert_sync_batchnorm

    model = revert_sync_batchnorm(importlib.import_module(f'{library}.registry').MODELS.build(cfg.model))
    return settle(model), lambda model, x: model(x, mode='tensor')


STOCK_MODELS = [*(f'torchvision/{n}' for n in TORCHVISION), *(f'timm/{n}' for n in TIMM), *MM]


@pytest.mark.parametrize('name', few(STOCK_MODELS, *STOCK_MODELS[::4]))
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
        assert relative(run(model, x), expected) < 1e-5
        double = copy.deepcopy(model).double()
        reparameterize(double) if branches(double) else double
        expected = run(double, x.double())
        assert relative(run(expand(double), x.double()), expected) < 1e-10


# Loading.


def random_resnet50() -> dict[str, torch.Tensor]:
    """A state dict in torchvision's format."""
    from torchvision.models import resnet50

    generator = torch.Generator().manual_seed(0)
    state = resnet50().state_dict()
    for value in state.values():
        if value.dim() == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return state


@pytest.fixture(scope='module')
def resnet50(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('weights') / 'resnet50.pth'
    torch.save(random_resnet50(), path)
    return path


@pytest.mark.parametrize('scope', few(['mmdet', 'mmseg', 'mmpretrain'], 'mmdet'))
def test_stock_weights_by_init_cfg(scope, resnet50, caplog):
    registry = importlib.import_module(f'{scope}.registry').MODELS
    options = dict(depth=50, out_indices=(0, 1, 2, 3), init_cfg=dict(type='Pretrained', checkpoint=str(resnet50)))
    outputs = []
    for kind in ('ResNet', 'OREPAResNet'):
        net = registry.build(dict(type=kind, **options))
        net.init_weights()
        net.eval()
        with torch.no_grad():
            outputs.append(net(torch.ones(1, 3, 64, 64).cumsum(2) / 64))
    assert branches(net) == 53
    assert relative(outputs[1], outputs[0]) < 1e-5


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


@pytest.mark.parametrize('strict', [False, True])
def test_stock_weights_by_mmengines_loader(strict, resnet50, tmp_path, capsys):
    from mmdet.registry import MODELS

    state = {key: value for key, value in torch.load(resnet50, weights_only=True).items() if not key.startswith('fc.')}
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in state.items()}), tmp_path / 'detector.pth')
    model = nn.ModuleDict(dict(backbone=MODELS.build(dict(type='OREPAResNet', depth=50))))
    load_checkpoint(model, str(tmp_path / 'detector.pth'), strict=strict)
    plain = orepa_mm.reparameterize(model).backbone.state_dict()
    assert all(relative(plain[key], value) < 1e-6 for key, value in state.items())


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
STOCK = {'model.backbone.type': 'ResNet'}  # the mini detector without branches


def stock_detector(tools, work_dir: Path, *options) -> Path:
    """A stock Mask R-CNN, trained for a moment."""
    status, error = tools.train('coco', work_dir, '--no-validate', options=STOCK | {'custom_hooks': '[]'} | dict(options))
    assert status == 0, error
    return work_dir / 'last.pth'


def test_a_stock_detector_goes_on_with_branches(tools, tmp_path):
    """load_from a stock checkpoint: the first validation gives the stock detector's metrics, and training goes on."""
    import json

    stock = stock_detector(tools, tmp_path / 'stock')
    metrics = []
    for form, options in (('--no-reparameterize', STOCK), ('--reparameterize', {}), ('--no-reparameterize', {})):
        path = tmp_path / f'{len(metrics)}.json'
        status, error = tools.test('coco', stock, tmp_path / path.stem, form, '--metrics', path, options=options)
        assert status == 0, error
        metrics.append({key: value for key, value in json.loads(path.read_text()).items() if 'time' not in key})
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3) and metrics[2] == pytest.approx(metrics[0], abs=1e-3)
    status, error = tools.train('coco', tmp_path / 'run', '--no-validate', options={'load_from': str(stock)})
    assert status == 0, error
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'OREPAResNet: 17 plain convolutions of the checkpoint are expanded' in log
    # Its optimizer's state belongs to the plain parameters.
    status, error = tools.train('coco', tmp_path / 'again', '--resume', stock)
    assert status == 2 and 'cannot be resumed' in error and 'load_from instead' in error


def test_expanding_a_file(tools, tmp_path, resnet50):
    status, error = tools.run(EXPAND, 'none', resnet50, tmp_path / 'out.pth', '--start', 'zeros')
    assert status == 0, error
    expanded = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    assert expanded['backbone.layer1.0.conv2.kernel.scale'][0].unique() == STARTS['zeros'][0]['origin']
    assert 'backbone.layer1.0.conv2.kernel.origin' in expanded and expanded['head.fc.weight'].shape == (1000, 2048)
    for arguments, message in (
        (('none', resnet50, tmp_path / 'out.pth'), '--force'),
        (('none', tmp_path / 'out.pth', tmp_path / 'twice.pth'), 'nothing to expand'),
        (('none', tmp_path / 'absent.pth', tmp_path / 'x.pth'), 'no such checkpoint'),
        (('none', resnet50, tmp_path / 'x.pth', '--start', 'zero'), "invalid choice: 'zero'"),
        ((tools.CONFIGS['imagenet'], resnet50, tmp_path / 'x.pth'), 'nothing to expand'),
    ):
        status, error = tools.run(EXPAND, *arguments)
        assert status == 2 and message in error.splitlines()[-1], error
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.pth']


@pytest.mark.parametrize('start', STARTS)
def test_a_bare_convolution_is_expanded_as_one_in_a_model(start):
    conv, options = nn.Conv2d(4, 4, 3), dict(start=start, branches=('origin', 'avg'))
    (inside,) = expand(nn.Sequential(copy.deepcopy(conv)), **options)
    conv.register_forward_hook(lambda module, args, output: output + 1)
    bare, x = expand(conv, **options), torch.randn(1, 4, 9, 8)
    assert bare.kernel.branches == ('origin', 'avg') and relative(bare(x), conv(x)) < 1e-5
    for key, value in inside.state_dict().items():
        assert torch.equal(bare.state_dict()[key], value), key


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
