"""Any choice of branches: what they add up to, their gradients, and what a layer takes of a checkpoint with more."""

from itertools import combinations

import pytest
import torch
from method_case import relative
from mmdet.registry import MODELS as MMDET
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from mmpretrain.registry import MODELS as MMPRETRAIN
from mmseg.registry import MODELS as MMSEG
from torch import nn

import orepa_mm
from orepa_mm import OREPAConv2d
from orepa_mm.checkpoints.published_layers import export_kxk
from orepa_mm.checkpoints.stem import squeeze_stem
from orepa_mm.errors import ExpandError, LayerError, LayoutError
from orepa_mm.functional import BRANCHES, WEIGHTS
from orepa_mm.layers.kernels import PRESETS

MODELS = dict(mmpretrain=MMPRETRAIN, mmdet=MMDET, mmseg=MMSEG)
SUBSETS = [subset for count in range(1, 7) for subset in combinations(BRANCHES, count)]
EXACT = 1e-10  # of the scale, in float64: more than rounding of the few products and sums of a kernel


def build(branches='full', kernel_size: int = 3, groups: int = 2, channels: tuple[int, int] = (4, 4), **kwargs) -> OREPAConv2d:
    torch.manual_seed(0)
    conv = OREPAConv2d(*channels, kernel_size, padding=kernel_size // 2, groups=groups, branches=branches, dtype=torch.float64, **kwargs)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return conv


def test_gradients_of_every_subset_are_those_of_the_plain_formula():
    for subset in SUBSETS:
        layer = build(subset, bias=False)
        assert set(dict(layer.kernel.named_parameters())) == {'scale'} | {p for name in subset for p in WEIGHTS[name]}
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
        found = []
        for closed_form in (True, False):
            layer.kernel.closed_form = closed_form
            found.append(torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))
        for actual, expected in zip(*found, strict=True):
            assert (actual - expected).abs().max() <= EXACT * expected.abs().max(), subset


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('switched_off', [False, True])
def test_a_checkpoint_with_more_branches_keeps_its_function(kernel_size, switched_off, caplog):
    caplog.set_level('INFO', 'orepa_mm')
    full, light = build('full', kernel_size, bias=True), build('light', kernel_size, bias=True)
    if switched_off:
        for module in full.modules():
            if hasattr(module, 'scale'):
                nn.init.zeros_(module.scale[0])
    expected = full.weight
    light.load_state_dict(full.state_dict())
    assert relative(light.weight, expected) < EXACT and torch.equal(light.bias, full.bias)
    if kernel_size == 3:
        assert 'kernel: the branches sequence, separable of the checkpoint were added to the plain one.' in caplog.text
    plain = orepa_mm.reparameterize(nn.Sequential(light).eval())[0]
    assert type(plain) is nn.Conv2d and relative(plain.weight, expected) < EXACT


def test_light_layers_have_hardly_more_parameters_than_plain_ones():
    sizes = [sum(p.numel() for p in OREPAConv2d(64, 64, 3, branches=branches).parameters()) for branches in ('light', 'full')]
    plain = sum(p.numel() for p in nn.Conv2d(64, 64, 3).parameters())
    assert plain < sizes[0] < 1.35 * plain and sizes[1] > 2 * plain


@pytest.mark.parametrize('kernel_size', [1, 3, 7])
def test_branches_that_a_checkpoint_lacks_start_at_zero(kernel_size, caplog):
    caplog.set_level('INFO', 'orepa_mm')
    full, light = build('full', kernel_size), build('light', kernel_size)
    full.load_state_dict(light.state_dict())
    assert relative(full.weight, light.weight) < EXACT
    assert 'which the checkpoint lacks, start' in caplog.text
    full.weight.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in full.named_parameters() if name.endswith(('seq_kxk', 'pointwise', 'first')))


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize(('size', 'change'), [(3, 'dw'), (3, 'scale'), *((size, 'width') for size in (1, 3, 7)), (7, 'plain stage')])
def test_what_is_of_another_shape_is_named_as_by_torch(size, change, strict):
    """Whatever is adapted otherwise: more branches, fewer, earlier names, a plain stage. The weights are copied as far as they fit."""
    for branches, others in (('full', 'light'), ('light', 'full'), ('full', 'full')):
        layer, other = build(branches, size, 1), build(others, size, 1, (4, 6 if change == 'width' else 4))
        state = other.state_dict()
        if change == 'dw':
            state |= {'kernel.dw': torch.zeros(7, 1, 3, 3), 'kernel.pw': torch.zeros(4, 7, 1, 1)}
            state.pop('kernel.depthwise', None), state.pop('kernel.pointwise', None)
        elif change == 'scale':
            state['kernel.scale'] = torch.tensor(1.0)
        elif change == 'plain stage':
            state = {key: value for key, value in state.items() if 'stages.1.' not in key} | {
                'kernel.stages.1.weight': torch.zeros(4, 4, 5, 5)
            }
        with pytest.raises(RuntimeError, match=r'size mismatch for kernel\.\S+: copying a param with shape torch'):
            layer.load_state_dict(state, strict=strict)
        nn.init.ones_(state['bias'].resize_(4))
        mmengine_load(layer, state)
        assert (layer.bias == 1).all()


@pytest.mark.parametrize('branches', ['light', ('separable', 'origin')])  # in any order
@pytest.mark.parametrize('start', ['balanced', 'zeros', 'shared'])
def test_expand_with_a_choice(branches, start):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 7, padding=3)).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = model(x)
    orepa_mm.expand(model, branches=branches, start=start, where=lambda path, _: path != '4')
    assert set(model[0].kernel.branches) == set(PRESETS.get(branches, branches) if isinstance(branches, str) else branches)
    assert relative(model(x), expected) < EXACT
    assert relative(orepa_mm.reparameterize(model)(x), expected) < EXACT


@pytest.mark.parametrize(
    ('branches', 'message'),
    [
        ('slim', r"branches='slim': 'slim' is unknown; choose from origin, avg, freq, sequence, point, separable, or one of the presets"),
        (('origin', 'dw'), "'dw' is unknown"),
        ((), 'none; choose from'),
        (('freq',), "zero for some of 6 output channels, which would stay zero; add another branch, such as 'origin'"),
    ],
)
def test_bad_input(branches, message):
    with pytest.raises(LayerError, match=message):
        build(branches, channels=(4, 6))


def test_nothing_can_be_expanded_without_the_plain_branch():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    for branches, message in ((('avg',), "it takes 'origin'"), (('none',), 'unknown')):
        with pytest.raises(ExpandError, match=message):
            orepa_mm.expand(model, branches=branches)
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(Exception, match="it takes 'origin'"):
        OREPAConv2d(4, 6, 3, branches=('avg', 'sequence')).load_state_dict(nn.Conv2d(4, 6, 3).state_dict())


class TestBackbones:
    @pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
    def test_resnets_hand_the_choice_to_all_layers(self, scope):
        backbone = MODELS[scope].build(dict(type='OREPAResNet', depth=50, base_channels=8, stem_channels=8, branches='light'))
        chosen = {m.kernel_size: m.branches for m in backbone.modules() if hasattr(m, 'branches')}
        assert chosen == {3: PRESETS['light'], 1: ('origin',)}

    def test_repvgg_blocks_have_a_1x1_branch_of_their_own(self):
        backbone = MODELS['mmpretrain'].build(dict(type='OREPARepVGG', arch='A0', base_channels=8, branches='light'))
        assert {m.branches for m in backbone.modules() if hasattr(m, 'branches')} == {('origin', 'avg', 'freq')}

    @pytest.mark.parametrize(
        ('kind', 'options', 'message'),
        [
            ('OREPAResNet', dict(depth=18, method='DBB'), "branches='light' is for method='OREPA', not 'DBB'"),
            ('OREPARepVGG', dict(arch='A0', method='RepVGG'), "branches='light' is for method='OREPA', not 'RepVGG'"),
            ('OREPAResNet', dict(depth=18, conv_cfg=dict(type='OREPAConv2d')), 'give the branches in the conv_cfg'),
            ('OREPARepVGG', dict(arch='A0', conv_cfg=dict(type='OREPAConv2d')), 'give the branches in the conv_cfg'),
        ],
    )
    def test_bad_input(self, kind, options, message):
        with pytest.raises(ValueError, match=message):
            MODELS['mmpretrain'].build(dict(type=kind, branches='light', **options))


def test_published_checkpoints_have_all_branches():
    with pytest.raises(LayoutError, match=r"lack depthwise, pointwise, seq_1x1, seq_kxk \(branches='light'\?\)"):
        export_kxk(build('light', groups=1).kernel.state_dict())


def test_a_light_stem_becomes_plain():
    conv = OREPAConv2d(3, 16, 7, bias=False, branches='light')
    state = {f'conv1.{key}': value for key, value in conv.state_dict().items()}
    assert squeeze_stem(state) and list(state) == ['conv1.weight']
    assert (state['conv1.weight'] - conv.weight).abs().max() < 1e-6 * conv.weight.abs().max()
