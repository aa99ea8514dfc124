"""tools/model_converters/convert_checkpoint.py."""

import importlib
import os
import re

import pytest
import torch
from conftest import ROOT, Payload, done, refused
from test_published_networks import FOLDER, same

from orepa_mm.checkpoints.architecture import name_of, recognise
from orepa_mm.checkpoints.checking import check_pretrained
from orepa_mm.checkpoints.reading import state_dict_of

CONVERT = 'tools/model_converters/convert_checkpoint'
SOURCE = FOLDER / 'resnet18_w0.125_orepa.pth.tar'
NETWORKS = {
    'resnet18_w0.125_orepa': ('resnet18-w0.125', 'OREPA'),
    'resnet18_w0.125_dbb': ('resnet18-w0.125', 'DBB'),
    'resnet50_w0.125_orepa': ('resnet50-w0.125', 'OREPA'),
    'resnext50_w0.125_c4_orepa': ('resnext50-4x2d-w0.125', 'OREPA'),
    'repvgg_a0_w0.125_orepa': ('repvgg-2-4-14-1-w0.125-0.125-0.125-0.25', 'OREPA'),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_there_and_back_again(name, tools, tmp_path):
    source = FOLDER / f'{name}.pth.tar'
    done(tools.run(CONVERT, source, tmp_path / 'mm.pth'))
    meta = torch.load(tmp_path / 'mm.pth', weights_only=True)['meta']
    assert (meta['arch'], meta['method']) == NETWORKS[name] and len(meta['source_sha256']) == len(meta['state_sha256']) == 64
    done(tools.run(CONVERT, tmp_path / 'mm.pth', tmp_path / 'back.pth.tar', '--reverse'))
    before, after = (torch.load(path, weights_only=True) for path in (source, tmp_path / 'back.pth.tar'))
    same(after.pop('state_dict'), before.pop('state_dict'))
    assert before == after


def test_the_table_of_published_files_names_our_configs():
    rows = dict(re.findall(r'^\| \[(\S+).*\]\(\S+\) \| `(orepa-\S+)` \|$', (ROOT / 'docs/architectures.md').read_text(), re.M))
    assert len(rows) == 9
    for name, config in rows.items():
        assert name.replace('-', '').lower() in config.replace('-', '').lower() and (ROOT / f'configs/imagenet/{config}.py').is_file()


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_pretrained_init_takes_the_result(scope, tools, tmp_path):
    done(tools.run(CONVERT, FOLDER / 'resnet50_w0.125_orepa.pth.tar', tmp_path / 'mm.pth', '--scope', 'backbone'))
    state = torch.load(tmp_path / 'mm.pth', weights_only=True)['state_dict']
    registry = importlib.import_module(f'{scope}.registry').MODELS
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'mm.pth'), prefix='backbone.')
    net = registry.build(dict(type='OREPAResNet', depth=50, stem_channels=8, base_channels=8, init_cfg=init_cfg))
    check_pretrained(net)
    net.init_weights()
    same({f'backbone.{key}': value for key, value in net.state_dict().items()}, state)


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
    target = tmp_path / 'mm.pth'

    def convert(content: dict):
        torch.save(content, tmp_path / 'x.pth')
        return tools.run(CONVERT, tmp_path / 'x.pth', target)

    refused(tools.run(CONVERT, SOURCE, target, '--arch', 'resnet50'), '--arch resnet50', 'resnet18-w0.125')
    refused(tools.run(CONVERT, SOURCE, target, '--method', 'DBB'), '--method DBB', 'OREPA')
    refused(tools.run(CONVERT, tmp_path / 'none.pth', target), 'none.pth', 'no such checkpoint')
    (tmp_path / 'cut.pth').write_bytes(SOURCE.read_bytes()[:5000])
    refused(tools.run(CONVERT, tmp_path / 'cut.pth', target), 'cut.pth', 'damaged')
    refused(convert(dict(state_dict={'backbone.conv1.weight': torch.ones(1)})), 'x.pth', '--reverse')
    refused(convert(dict(state_dict=Payload(os.mkdir, str(tmp_path / 'was_here')))), 'x.pth', 'would run code')
    state = state_dict_of(torch.load(SOURCE, weights_only=True))  # bare, without the prefix of a wrapper
    assert not target.exists() and not (tmp_path / 'was_here').exists() and not list(tmp_path.glob('*.partial'))
    target.write_text('mine')
    refused(tools.run(CONVERT, SOURCE, target), 'mm.pth', '--force')
    assert target.read_text() == 'mine'
    state['stage1.0.conv1.vector'][0, 0] = float('nan')
    torch.save(state, tmp_path / 'nan.pth')
    said = done(tools.run(CONVERT, tmp_path / 'nan.pth', target, '--arch', 'resnet18-w0.125', '--method', 'OREPA', '--force'))
    assert 'warning: 1 tensors are not finite: backbone.layer1.0.conv1.kernel.scale' in said
