"""tools/model_converters/convert_checkpoint.py."""

import os
from pathlib import Path

import pytest
import torch

from orepa_mm.checkpoints.architecture import name_of, recognise
from orepa_mm.checkpoints.checking import check_pretrained
from orepa_mm.checkpoints.reading import state_dict_of

CONVERT = 'tools/model_converters/convert_checkpoint'
FOLDER = Path(__file__).parent / 'data' / 'published'
NETWORKS = {
    'resnet18_w0.125_orepa': ('resnet18-w0.125', 'OREPA'),
    'resnet18_w0.125_dbb': ('resnet18-w0.125', 'DBB'),
    'resnet50_w0.125_orepa': ('resnet50-w0.125', 'OREPA'),
    'resnext50_w0.125_c4_orepa': ('resnext50-4x2d-w0.125', 'OREPA'),
    'repvgg_a0_w0.125_orepa': ('repvgg-2-4-14-1-w0.125-0.125-0.125-0.25', 'OREPA'),
}


def refused(result, *parts):
    status, error = result
    lines = [line for line in error.splitlines() if line.startswith('error: ')]
    assert status == 2 and len(lines) == 1, error
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.mark.parametrize('name', NETWORKS)
def test_there_and_back_again(name, tools, tmp_path):
    source = FOLDER / f'{name}.pth.tar'
    status, error = tools.run(CONVERT, source, tmp_path / 'mm.pth')
    assert status == 0, error
    meta = torch.load(tmp_path / 'mm.pth', weights_only=True)['meta']
    assert (meta['arch'], meta['method']) == NETWORKS[name] and len(meta['source_sha256']) == len(meta['state_sha256']) == 64
    status, error = tools.run(CONVERT, tmp_path / 'mm.pth', tmp_path / 'back.pth.tar', '--reverse')
    assert status == 0, error
    before, after = (torch.load(path, weights_only=True) for path in (source, tmp_path / 'back.pth.tar'))
    assert {key: value for key, value in before.items() if key != 'state_dict'} == {k: v for k, v in after.items() if k != 'state_dict'}
    assert before['state_dict'].keys() == after['state_dict'].keys()
    for key, value in before['state_dict'].items():
        read = slice(5) if '.rbr_dense.vector' in key else Ellipsis  # nothing reads a sixth row
        assert torch.equal(value[read], after['state_dict'][key][read]), key


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_pretrained_init_takes_the_result(scope, tools, tmp_path):
    assert (
        tools.run(
            CONVERT,
            FOLDER / 'resnet50_w0.125_orepa.pth.tar',
            tmp_path / 'mm.pth',
            '--scope',
            'backbone',
        )[0]
        == 0
    )
    state = torch.load(tmp_path / 'mm.pth', weights_only=True)['state_dict']
    assert all(key.startswith('backbone.') for key in state)
    registry = __import__(f'{scope}.registry').registry.MODELS
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'mm.pth'), prefix='backbone.')
    net = registry.build(dict(type='OREPAResNet', depth=50, stem_channels=8, base_channels=8, init_cfg=init_cfg))
    check_pretrained(net)
    net.init_weights()
    loaded = net.state_dict()
    assert {f'backbone.{key}' for key in loaded} == set(state)
    assert all(torch.equal(loaded[key.removeprefix('backbone.')], value) for key, value in state.items())


def test_bare_state_dict_without_module_prefix(tools, tmp_path):
    state = state_dict_of(torch.load(FOLDER / 'resnet18_w0.125_orepa.pth.tar', weights_only=True))
    torch.save(state, tmp_path / 'bare.pth')
    assert (
        tools.run(
            CONVERT,
            tmp_path / 'bare.pth',
            tmp_path / 'mm.pth',
            '--arch',
            'resnet18-w0.125',
            '--method',
            'OREPA',
        )[0]
        == 0
    )


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        ('resnet34', dict(type='OREPAResNet', depth=34, method='none')),
        ('resnet101', dict(type='OREPAResNet', depth=101, method='DBB')),
        ('wideresnet18-x1.5', dict(type='OREPAResNet', depth=18, method='OREPA', base_channels=96)),
        ('wideresnet18-x2', dict(type='OREPAResNet', depth=18, method='OREPA', base_channels=128)),
        ('resnext50-32x4d', dict(type='OREPAResNeXt', depth=50, method='OREPA')),
    ],
)
def test_full_width_networks_are_recognised(name, config):
    from mmpretrain.registry import MODELS

    state = {f'backbone.{key}': value for key, value in MODELS.build(dict(config)).state_dict().items()}
    found = recognise(state)
    assert name_of(found) == name and {key: found[key] for key in config} == config


def test_bad_input_is_refused_and_nothing_written(tools, tmp_path):
    source, target = FOLDER / 'resnet18_w0.125_orepa.pth.tar', tmp_path / 'mm.pth'
    refused(tools.run(CONVERT, source, target, '--arch', 'resnet50'), '--arch resnet50', 'resnet18-w0.125')
    refused(tools.run(CONVERT, source, target, '--method', 'DBB'), '--method DBB', 'OREPA')
    refused(tools.run(CONVERT, tmp_path / 'none.pth', target), 'none.pth', 'no such checkpoint')
    (tmp_path / 'cut.pth').write_bytes(source.read_bytes()[:5000])
    refused(tools.run(CONVERT, tmp_path / 'cut.pth', target), 'cut.pth', 'damaged')
    torch.save(dict(state_dict={'neck.lateral_convs.0.conv.weight': torch.ones(1)}), tmp_path / 'neck.pth')
    refused(tools.run(CONVERT, tmp_path / 'neck.pth', target), 'neck.pth', 'not a published ResNet')
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), tmp_path / 'mmdet.pth')
    refused(tools.run(CONVERT, tmp_path / 'mmdet.pth', target), 'mmdet.pth', '--reverse')
    refused(tools.run(CONVERT, source, target, '--reverse'), 'not an MM classifier')

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'was_here'),)

    torch.save(dict(state_dict=Payload()), tmp_path / 'evil.pth')
    refused(tools.run(CONVERT, tmp_path / 'evil.pth', target), 'evil.pth', 'would run code')
    state = state_dict_of(torch.load(source, weights_only=True))
    state['stage1.0.conv1.vector'] = torch.ones(6, 9)
    torch.save(state, tmp_path / 'shape.pth')
    refused(
        tools.run(CONVERT, tmp_path / 'shape.pth', target),
        'layer1.0.conv1.kernel.scale is (6, 9), not (6, 8)',
    )
    state.pop('stage1.0.conv1.vector')
    torch.save(state, tmp_path / 'missing.pth')
    refused(
        tools.run(CONVERT, tmp_path / 'missing.pth', target),
        'missing backbone.layer1.0.conv1.kernel.scale',
    )
    assert not target.exists() and not (tmp_path / 'was_here').exists() and not list(tmp_path.glob('*.partial'))
    target.write_text('mine')
    refused(tools.run(CONVERT, source, target), 'mm.pth', '--force')
    assert target.read_text() == 'mine'
    assert tools.run(CONVERT, source, target, '--force')[0] == 0


def test_weights_that_are_not_finite_are_named(tools, tmp_path):
    state = state_dict_of(torch.load(FOLDER / 'resnet18_w0.125_orepa.pth.tar', weights_only=True))
    state['stage1.0.conv1.vector'][0, 0] = float('nan')
    torch.save(state, tmp_path / 'nan.pth')
    status, error = tools.run(CONVERT, tmp_path / 'nan.pth', tmp_path / 'mm.pth')
    assert status == 0 and 'warning: 1 tensors are not finite: backbone.layer1.0.conv1.kernel.scale' in error
