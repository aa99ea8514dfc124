"""What a conversion writes, value by value, and what it says of files it cannot take."""

import hashlib
import struct
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from test_published_networks import FOLDER, deployed_form, load, same

from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.checkpoints.architecture import recognise
from orepa_mm.checkpoints.conversion import check_network, export_checkpoint, import_checkpoint, not_finite, sha256_of_state
from orepa_mm.checkpoints.plain_kernels import plain_kernels
from orepa_mm.checkpoints.published import deployed_names, export_network, import_network
from orepa_mm.checkpoints.published_layers import EPS, deployed_name, export_kxk, import_conv, import_kxk
from orepa_mm.errors import CheckpointError, LayoutError

SOURCE = FOLDER / 'resnet18_w0.125_orepa.pth.tar'
CONFIG = dict(type='OREPAResNet', depth=18, method='OREPA', stem_channels=8, base_channels=8)


FILE = Path('FILE')


def published() -> dict:
    return torch.load(SOURCE, weights_only=True)


def test_the_hash_is_that_of_keys_types_shapes_and_bytes():
    """In the order of the keys, and of a tensor's elements by its shape, wherever they lie in memory."""
    state = {'b': torch.arange(6.0).view(2, 3).t(), 'a': torch.tensor(3)}
    expected = b'a torch.int64 ()' + struct.pack('<q', 3) + b'b torch.float32 (3, 2)' + struct.pack('<6f', 0, 3, 1, 4, 2, 5)
    assert sha256_of_state(state) == hashlib.sha256(expected).hexdigest()


def test_all_that_is_noted_of_a_source():
    checkpoint = published() | dict(optimizer=dict(lr=0.1))  # numbers and words only are kept
    result = import_checkpoint(checkpoint, SOURCE)
    assert result.keys() == {'meta', 'state_dict'}
    assert result['meta'] == dict(
        arch='resnet18-w0.125',
        method='OREPA',
        backbone=CONFIG,
        source=SOURCE.name,
        source_sha256=hashlib.sha256(SOURCE.read_bytes()).hexdigest(),
        state_sha256=sha256_of_state(result['state_dict']),
        published=dict(epoch=120, arch='ResNet-18', best_acc1=0.0, module_prefix=True, deployed={}),
    )
    same(result['state_dict'], import_network(load('resnet18_w0.125_orepa')[0]))
    exported = export_checkpoint(result, SOURCE)
    assert exported | dict(state_dict={}) == dict(epoch=120, arch='ResNet-18', best_acc1=0.0, state_dict={})
    same(exported['state_dict'], checkpoint['state_dict'])
    backbone = import_checkpoint(checkpoint, SOURCE, backbone_only=True)
    same(backbone['state_dict'], {key: value for key, value in result['state_dict'].items() if key.startswith('backbone.')})
    assert backbone['meta']['state_sha256'] == sha256_of_state(backbone['state_dict']) != result['meta']['state_sha256']


@pytest.mark.parametrize('prefix', ['module.', ''])
def test_the_prefix_of_wrappers_comes_back_where_all_keys_had_it(prefix):
    state, _ = load('resnet18_w0.125_orepa')
    state = {prefix + key: value for key, value in state.items()}  # bare state dicts, not under "state_dict"
    result = import_checkpoint(state, SOURCE)
    assert result['meta']['published'] == dict(module_prefix=bool(prefix), deployed={})
    exported = export_checkpoint(result, SOURCE)
    assert exported.keys() == {'state_dict'}
    same(exported['state_dict'], state)


def test_a_classifier_trained_here_is_exported_as_the_publications_write_theirs():
    """Without a word of where it came from: with the prefix, and in training form."""
    state, _ = load('resnet18_w0.125_orepa')
    for more in ({}, dict(meta=dict(epoch=3))):
        exported = export_checkpoint(dict(state_dict=import_network(state), **more), SOURCE, arch='resnet18-w0.125')
        assert exported.keys() == {'state_dict'}
        same(exported['state_dict'], {f'module.{key}': value for key, value in state.items()})


def test_a_deployed_network_comes_back_under_its_own_names():
    state, _ = deployed_form('resnet18_w0.125_orepa')
    result = import_checkpoint(dict(state_dict=state), SOURCE, method='none')
    names = result['meta']['published']['deployed']
    assert result['meta']['method'] == 'none' and names == deployed_names(state)
    assert len(names) == 20 and [names[key] for key in ('stage0.conv1', 'stage2.0.conv1', 'stage2.0.shortcut')] == [
        'or_large_reparam', 'orepa_reparam', 'conv'
    ]  # fmt: skip
    same(export_checkpoint(result, SOURCE)['state_dict'], state)


def refuses(message: str, convert: Callable, *args, **options) -> None:
    with pytest.raises((CheckpointError, LayoutError)) as caught:
        convert(*args, **options)
    assert fnmatchcase(str(caught.value), message)


def test_files_of_another_kind_than_the_one_asked_for():
    mine, plain, more = import_checkpoint(published(), SOURCE), deployed_form('resnet18_w0.125_orepa')[0], {'backbone.more': torch.ones(1)}
    refuses('--arch resnet50: FILE is a resnet18-w0.125.', import_checkpoint, published(), FILE, arch='resnet50')
    refuses('--method DBB: FILE was trained with OREPA.', import_checkpoint, published(), FILE, method='DBB')
    refuses('--method OREPA: FILE is a plain network.', import_checkpoint, plain, FILE, method='OREPA')
    refuses('FILE: is an MM checkpoint already; --reverse*', import_checkpoint, mine, FILE)
    refuses('FILE: not a published ResNet, * (unknown key neck.weight).', import_checkpoint, {'neck.weight': torch.ones(1)}, FILE)
    refuses('FILE: not an MM classifier * (*is no ResNet known here).', export_checkpoint, published(), FILE)
    refuses('--arch resnet50: FILE is a resnet18-w0.125.', export_checkpoint, mine, FILE, arch='resnet50')
    refuses('FILE: *unexpected backbone.more*', export_checkpoint, dict(state_dict=mine['state_dict'] | more), FILE)
    import_checkpoint(published(), SOURCE, arch='resnet18-w0.125', method='OREPA')


def test_what_does_not_match_is_listed():
    state = import_network(load('resnet18_w0.125_orepa')[0])
    check_network(state, CONFIG)
    backbone = {key: value for key, value in state.items() if key.startswith('backbone.')}
    check_network(backbone, CONFIG)
    check_network(backbone | {'head.fc.weight': torch.ones(7, 64), 'head.fc.bias': torch.ones(7)}, CONFIG)  # any number of classes
    wrong = backbone | {'head.fc.weight': torch.ones(7, 64), 'neck': torch.ones(1), 'backbone.bn1.bias': torch.ones(3)}
    del wrong['backbone.bn1.weight']
    refuses(
        'it does not match resnet18-w0.125: missing backbone.bn1.weight; missing head.fc.bias; unexpected neck; '
        'backbone.bn1.bias is (3,), not (8,); head.fc.weight is (7, 64), not (0, 64)',
        check_network,
        wrong,
        CONFIG,
    )
    wrong |= {'neck1': torch.ones(1), 'neck2': torch.ones(1)}
    refuses('*unexpected neck; unexpected neck1; unexpected neck2 and 2 more', check_network, wrong, CONFIG)


def test_values_that_are_not_finite_are_named():
    nan, inf = torch.tensor([1.0, float('nan')]), torch.tensor([float('inf'), 1.0])
    assert not_finite(dict(a=torch.ones(2), b=nan, c=torch.tensor([1, 2]), d=inf, e=torch.zeros(1))) == ['b', 'd']


def test_keys_that_no_published_network_has():
    def has(message: str, convert: Callable, *keys: str, state: dict | None = None) -> None:
        refuses(message, convert, (state or {}) | dict.fromkeys(keys, torch.ones(1)))

    state = import_network(load('resnet18_w0.125_orepa')[0])
    assert recognise(state) == CONFIG
    for key in ('neck.weight', 'backbone.layer5.0.conv1.weight'):
        has(f'unknown key {key}', export_network, key, state=state)
    norms = ('backbone.layer1.7.bn2.bias', 'backbone.layer3.9.downsample.1.bias')
    has('norms without a convolution: stage1.7.conv2, stage3.9.shortcut', export_network, *norms, state=state)
    repvgg = ('backbone.stem.branch_3x3.conv.weight', 'backbone.stage_1.0.branch_5x5.conv.weight')
    has('unknown key of a RepVGG block: branch_5x5.conv.weight', export_network, *repvgg)
    has('unknown key of a RepVGG block: rbr_5x5.weight', import_network, 'stage1.0.rbr_5x5.weight')
    has('unknown keys of a convolution: a, b, c', import_conv, 'a', 'b', 'c', 'd', 'bn.weight')
    has('unknown keys of a convolution: bn.weight', import_conv, 'bn.weight')


def test_the_publications_have_all_branches_but_that_of_1x1():
    state, prefix = load('resnet18_w0.125_orepa')[0], 'stage1.0.conv1.'
    kernel = import_kxk({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    assert 'point' in kernel
    del kernel['point']
    assert 'weight_orepa_1x1' not in export_kxk(kernel)
    del kernel['avg'], kernel['seq_kxk']
    with pytest.raises(LayoutError, match=r"all branches, and this checkpoint's lack avg, seq_kxk \(branches='light'\?\)$"):
        export_kxk(kernel)


@pytest.mark.parametrize(
    ('keys', 'name'),
    [
        ('conv.weight conv.bias', 'conv'),
        ('dbb_reparam.weight dbb_reparam.bias', 'dbb_reparam'),
        ('conv.weight bn.bias', None),
        ('conv.bias', None),
        ('conv.weight conv.bias dbb_reparam.weight dbb_reparam.bias', None),
    ],
)
def test_what_a_deployed_convolution_is_called(keys, name):
    assert deployed_name(dict.fromkeys(keys.split(), torch.ones(1))) == name


def test_the_norm_that_takes_a_deployed_bias_passes_everything_else():
    bias, x = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    conv, state = import_conv({'conv.weight': torch.ones(3, 1, 1, 1), 'conv.bias': bias})
    assert conv.keys() == {'weight'} and torch.equal(conv['weight'], torch.ones(3, 1, 1, 1))
    norm = torch.nn.BatchNorm2d(3, eps=EPS, dtype=torch.float64)
    norm.load_state_dict(state)
    assert (norm.eval()(x) - x - bias.view(-1, 1, 1)).abs().max() < 1e-14
    assert state['running_mean'].tolist() == [0, 0, 0] and state['weight'].tolist() == [1, 1, 1] and state['num_batches_tracked'] == 0


@pytest.mark.parametrize('prefix', ['', 'model.'])
def test_layers_that_a_file_has_plain_kernels_for(prefix):
    model = torch.nn.Sequential(
        OREPAConv2d(4, 4, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.Sequential(DBBConv2d(4, 4, 3, padding=1), OREPAConv2d(4, 4, 1))
    )
    found = {f'{prefix}{path}.weight': torch.ones(4, 4, 3, 3) for path in ('0', '1', '2.0', '2.1')} | {
        f'{prefix}2.1.kernel.scale': torch.ones(2)
    }
    assert plain_kernels(model, found) == ([] if prefix else ['0', '2.0'])
    assert plain_kernels(model, found, prefix) == ['0', '2.0']
    assert plain_kernels(model[0], {f'{prefix}weight': torch.ones(4, 4, 3, 3)}, prefix) == ['']
