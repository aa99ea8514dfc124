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
        (dbb, none, 'Diverse Branch Blocks, which cannot start from them'),
        (deep, orepa, 'of the checkpoint is'),
        (none, folded, 'norms (are )?folded'),
        (orepa, folded, 'norms (are )?folded'),
    ]
    for model, source, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            load_state_dict(model, dict(source.state_dict()), strict=False)
    load_state_dict(orepa, dict(none.state_dict()), strict=False)  # expanded
    load_state_dict(orepa, dict(build().state_dict()), strict=False)
