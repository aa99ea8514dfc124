"""Reading checkpoints without running code from them."""

import os

import numpy as np
import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import HistoryBuffer

from orepa_mm.checkpoints.checking import check_state_dict
from orepa_mm.checkpoints.reading import read_checkpoint, state_dict_of
from orepa_mm.errors import CheckpointError


def test_mmengine_log_history_is_read(tmp_path):
    buffer = HistoryBuffer()
    buffer.update(1.5, 2)
    torch.save(dict(state_dict=dict(w=torch.ones(2)), message_hub=dict(loss=buffer), number=np.float64(3)), tmp_path / 'a.pth')
    checkpoint = read_checkpoint(tmp_path / 'a.pth')
    assert checkpoint['message_hub']['loss'].current() == 1.5 and checkpoint['number'] == 3


def test_what_others_have_allowed_stays_theirs(tmp_path, capsys):
    buffer = HistoryBuffer()
    buffer.update(1.5, 2)
    torch.save(dict(state_dict=dict(w=torch.ones(2)), loss=buffer), tmp_path / 'a.pth')
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([HistoryBuffer, (print, 'builtins.getattr')]):
        theirs = set(torch.serialization.get_safe_globals())
        capsys.readouterr()
        read_checkpoint(tmp_path / 'a.pth')
        assert 'HistoryBuffer' in capsys.readouterr().out  # their stand-in for getattr was used
        assert set(torch.serialization.get_safe_globals()) == theirs
    assert set(torch.serialization.get_safe_globals()) == set(before)
    assert read_checkpoint(tmp_path / 'a.pth')['loss'].current() == 1.5


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'payload',
    [Call(os.system, 'true'), Call(getattr, HistoryBuffer, '__init__'), Call(getattr, np.ndarray, 'tofile'), Call(eval, '1')],
)
def test_payloads_are_refused(payload, tmp_path):
    torch.save(dict(state_dict=dict(w=torch.ones(2)), payload=payload), tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='evil.pth: refused'):
        read_checkpoint(tmp_path / 'evil.pth')


@pytest.mark.parametrize('content', [[1, 2], dict(epoch=3), 'text'])
def test_files_without_weights(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='holds no weights'):
        read_checkpoint(tmp_path / 'a.pth')


def test_module_prefix_and_bare_state_dicts():
    weight = torch.ones(1)
    assert state_dict_of({'state_dict': {'module.a': weight}}) == {'a': weight}
    assert state_dict_of({'a': weight}) == {'a': weight}


def test_fine_tuning_may_replace_a_head_but_not_most_of_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    state = model.state_dict()
    other = dict(state, **{'2.weight': torch.ones(5, 2), '2.bias': torch.ones(5)})
    check_state_dict(model, other, 'a.pth', partial=True)
    with pytest.raises(CheckpointError, match=r'2 of another shape \(2.weight \(5, 2\) for \(3, 2\)'):
        check_state_dict(model, other, 'a.pth')
    with pytest.raises(CheckpointError, match='4 of 6 keys missing'):
        check_state_dict(model, {key: state[key] for key in ('0.weight', '0.bias')}, 'a.pth', partial=True)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_loaders_that_are_not_strict_refuse_weights_of_another_network(scope):
    """What the stock inferencers do: mmengine's loader, with nothing of ours around it."""
    import importlib

    from mmengine.runner.checkpoint import load_state_dict

    registry = importlib.import_module(f'{scope}.registry').MODELS

    def build(**options):
        return registry.build(dict(dict(type='OREPAResNet', depth=18, stem_channels=32, base_channels=8), **options))

    folded = build(method='none')
    folded.eval()  # returns nothing
    folded = fuse_conv_bn(folded)
    orepa, dbb, none, deep = build(), build(method='DBB'), build(method='none'), build(depth=50)
    wrong = [
        (none, orepa, 'training-time branches'),
        (dbb, orepa, 'training-time branches'),
        (orepa, dbb, 'does not fit'),
        (dbb, none, r'\(DBBConv2d\) whose branches have norms, and which cannot start from them'),
        (deep, orepa, 'of the checkpoint is'),
        (none, folded, 'norms (are )?folded'),
        (orepa, folded, 'norms (are )?folded'),
    ]
    for model, source, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            load_state_dict(model, dict(source.state_dict()), strict=False)
    load_state_dict(orepa, dict(none.state_dict()), strict=False)  # expanded
    load_state_dict(orepa, dict(build().state_dict()), strict=False)


def test_damage_is_seen(tmp_path):
    """torch ignores the checksums in the files it writes."""
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=dict(w=torch.zeros(4096))), path)
    data = bytearray(path.read_bytes())
    middle = data.index(bytes(1000)) + 500
    data[middle : middle + 16] = b'x' * 16
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)['state_dict']['w'].any()
    with pytest.raises(CheckpointError, match='checksum'):
        read_checkpoint(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match='cut short or damaged'):
        read_checkpoint(path)


def test_the_old_format_of_torch_is_read(tmp_path):
    torch.save(dict(state_dict=dict(w=torch.ones(2))), tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / 'a.pth')['state_dict']['w'].tolist() == [1, 1]


def test_weights_of_another_kind_are_refused(tmp_path):
    model = torch.nn.Linear(4, 4)
    weight = torch.eye(4)
    for other in (weight.int(), weight.to_sparse(), torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)):
        with pytest.raises(CheckpointError, match='no plain floating-point tensors'):
            check_state_dict(model, dict(weight=other, bias=torch.zeros(4)), 'a.pth')
    check_state_dict(model, dict(weight=weight.half(), bias=torch.zeros(4)), 'a.pth')
    torch.save(dict(state_dict=dict(weight=torch.empty(4, 4, device='meta'))), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='without numbers'):
        read_checkpoint(tmp_path / 'a.pth')
