"""The layers give the numbers of the published implementation, in float64 to 1e-10 of the output's scale."""

from pathlib import Path

import pytest
import torch
from test_published_networks import same
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from orepa_mm import DBBConv2d, OREPAConv2d, reparameterize
from orepa_mm.checkpoints.published_layers import (
    export_block,
    export_conv,
    export_deployed,
    export_kxk,
    import_block,
    import_conv,
    import_kxk,
)
from orepa_mm.errors import LayoutError

BLOCKS = torch.load(Path(__file__).parent / 'data' / 'published_blocks.pth', weights_only=True)
CASES = {name: case for name, case in BLOCKS.items() if name.startswith('orepa_') and 'vgg' not in name}
TOLERANCE = 1e-10
WITHOUT_POINT = ('origin', 'avg', 'freq', 'sequence', 'separable')


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype == torch.float64
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def build(name: str) -> tuple[nn.Sequential, dict]:
    case = CASES[name]
    kwargs, state = dict(case['kwargs']), case['state_dict']
    conv = OREPAConv2d(**{'kernel_size': 1, **kwargs}, bias=False, plain_stages='weight0' in state, dtype=torch.float64)
    conv_state, norm_state = import_conv(state)
    conv.load_state_dict(conv_state)
    norm = nn.BatchNorm2d(conv.out_channels, dtype=torch.float64)
    norm.load_state_dict(norm_state)
    return nn.Sequential(conv, norm).eval(), case


def check_deployed(plain: nn.Conv2d, case: dict, whole: nn.Module | None = None) -> None:
    assert type(plain) is nn.Conv2d
    assert difference(plain.weight, case['kernel']) < TOLERANCE
    assert difference(plain.bias, case['bias']) < TOLERANCE
    assert difference((whole or plain)(case['input']), case['output']) < TOLERANCE


@pytest.mark.parametrize('name', CASES)
def test_kernel_and_output_in_both_forms(name):
    block, case = build(name)
    assert difference(block[0].weight, case['squeezed']) < TOLERANCE
    assert difference(block(case['input']), case['output']) < TOLERANCE
    reparameterize(block)
    assert type(block[0]) is nn.Conv2d and type(block[1]) is nn.BatchNorm2d
    check_deployed(fuse_conv_bn_eval(*block), case)


DBB_CASES = {name: case for name, case in BLOCKS.items() if name.startswith('dbb_')}


@pytest.mark.parametrize('name', ['dbb_3x3', 'dbb_3x3_g2_s2'])
def test_diverse_branch_block(name):
    case = DBB_CASES[name]
    block = DBBConv2d(**case['kwargs'], dtype=torch.float64)
    state, norm = import_conv(case['state_dict'])
    assert not norm
    block.load_state_dict(state)
    block.eval()
    assert difference(block(case['input']), case['output']) < TOLERANCE
    check_deployed(reparameterize(nn.Sequential(block))[0], case)


@pytest.mark.parametrize('name', ['repvgg_identity', 'orepa_vgg_identity', 'orepa_vgg_s2'])
def test_repvgg_block(name):
    from mmpretrain.models.backbones.repvgg import RepVGGBlock

    case = BLOCKS[name]
    kwargs, published = dict(case['kwargs']), case['state_dict']
    kwargs.pop('kernel_size')
    conv_cfg = dict(type='OREPAConv2d', plain_sizes=(1,), branches=WITHOUT_POINT) if name.startswith('orepa') else None
    block = RepVGGBlock(**kwargs, conv_cfg=conv_cfg).double()
    state = import_block(published)
    block.load_state_dict(state)
    block.eval()
    assert difference(block(case['input']), case['output']) < TOLERANCE
    deployed = reparameterize(block)
    assert len(list(deployed.parameters())) == 2
    check_deployed(deployed.branch_reparam, case, deployed)
    again = export_block(state)
    same(*({f'.{key}': value for key, value in each.items()} for each in (again, published)))


def test_start_of_the_kernel_without_its_1x1_branch():
    kernel = OREPAConv2d(16, 16, 3, branches=WITHOUT_POINT).kernel
    assert kernel.scale[:, 0].tolist() == [0.25, 0.25, 0, 0.5, 0.5]
    bound = (6 / 2 / (16 * 9)) ** 0.5  # Kaiming uniform, a = 1
    assert 0.95 * bound < kernel.origin.abs().max() <= bound


def alike(again: dict, layer: dict) -> None:
    torch.testing.assert_close(again, layer, rtol=0, atol=1e-12)  # types, shapes and keys, too


def test_kernels_there_and_back():
    layer = {key: value for key, value in CASES['orepa_3x3_g2']['state_dict'].items() if key.split('_')[0] in ('vector', 'weight', 'id')}
    alike(export_kxk(import_kxk(layer)), layer)
    needed = {key: layer[f'weight_orepa_{key}'] for key in ('origin', 'gconv_dw', 'gconv_pw', '1x1_kxk_conv2')}
    assert len(import_kxk({f'weight_orepa_{key}': value for key, value in needed.items()})) == 4
    with pytest.raises(LayoutError, match=r'are missing; it has weight_orepa_origin, weight_orepa_gconv_dw, weight_orepa_gconv_pw$'):
        import_kxk({f'weight_orepa_{key}': value for key, value in needed.items() if 'conv2' not in key} | {'more': needed['origin']})


def test_deployed_layers_there_and_back():
    layer = {'orepa_reparam.weight': torch.randn(4, 2, 3, 3), 'orepa_reparam.bias': torch.randn(4)}
    conv, norm = import_conv(layer)
    assert norm['num_batches_tracked'].item() == 0
    same(export_deployed(conv, norm | {'num_batches_tracked': torch.tensor(5)}, 'orepa_reparam'), layer)
    for key in ('weight', 'running_mean', 'running_var'):
        with pytest.raises(LayoutError, match='^the norms have been trained since'):
            export_deployed(conv, norm | {key: norm[key] + 1e-3}, 'orepa_reparam')


@pytest.mark.parametrize('name', [*CASES, *DBB_CASES])
def test_layers_there_and_back(name):
    """Stems whose stages have no branches among them."""
    layer = BLOCKS[name]['state_dict']
    alike(export_conv(*import_conv(layer)), layer)
