"""Reading checkpoints without running code from them."""

import importlib
import os
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import Payload
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from orepa_mm.checkpoints.checking import check_state_dict
from orepa_mm.checkpoints.reading import read_checkpoint, state_dict_of
from orepa_mm.errors import CheckpointError
from orepa_mm.torch_versions import SAFE_GLOBALS

STATE = {'conv.weight': torch.ones(2, 2), 'bn.bias': torch.ones(2)}


@pytest.fixture
def read(tmp_path):
    """What is read of a file with this content."""

    def get(content, **options):
        torch.save(content, tmp_path / 'a.pth', **options)
        return read_checkpoint(tmp_path / 'a.pth')

    return get


def test_mmengine_log_history_is_read_and_what_others_have_allowed_stays_theirs(tmp_path, capsys):
    buffer, path = HistoryBuffer(), tmp_path / 'a.pth'
    buffer.update(1.5, 2)
    torch.save(dict(state_dict=STATE, message_hub=dict(loss=buffer), number=np.float64(3)), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint['message_hub']['loss'].current() == 1.5 and checkpoint['number'] == 3
    torch.save(checkpoint, path)
    assert b'orepa_mm' not in path.read_bytes()  # a run that goes on writes what others read
    if not SAFE_GLOBALS:
        return
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([HistoryBuffer, (print, 'builtins.getattr')]):
        theirs = set(torch.serialization.get_safe_globals())
        capsys.readouterr()
        read_checkpoint(path)
        assert 'HistoryBuffer' in capsys.readouterr().out  # their stand-in for getattr was used
        assert set(torch.serialization.get_safe_globals()) == theirs
    assert set(torch.serialization.get_safe_globals()) == set(before)
    read_checkpoint(path)  # gives the class the methods back that their stand-in took


@pytest.mark.parametrize(
    'held',
    [
        *(
            Payload(*call)
            for call in ((os.system, 'true'), (eval, '1'), (getattr, HistoryBuffer, '__init__'), (getattr, np.ndarray, 'tofile'))
        ),
        *(np.array(['x']), np.array([{}], dtype=object), np.dtype('U3')),  # and not called damaged
    ],
)
def test_what_is_more_than_weights_is_refused(held, read):
    with pytest.raises(CheckpointError, match='a.pth: refused, because it'):
        read(dict(state_dict=STATE, meta=held))


HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
MEAN = b'c__builtin__\ngetattr\n' + HISTORY + b'U\x04mean\x86R'
FLOAT = b'cnumpy\ndtype\nU\x02f8\x85R'


@pytest.mark.parametrize(
    'instructions',
    [
        b"(S'touch ran'\nios\nsystem\n",  # INST
        b'(cos\nsystem\nU\x09touch rano',  # OBJ
        b'\x8c\x02os\x8c\x06system\x93U\x09touch ran\x85R',  # STACK_GLOBAL
        b'ctorch\nserialization.os.system\nU\x09touch ran\x85R',
        b'ctorch.storage\n_load_from_bytes\nU\x01a\x85R',
        HISTORY + b'N}U\x04meanK\x05s\x86b',  # attributes of a class
        MEAN + b'N}U\x0c__defaults__)s\x86b',  # and of a function
        MEAN + HISTORY + b')\x81\x85R',  # a call of what was not named but found
        HISTORY + b'K\x01a',
        b']K\x00K\x01s',
        b'(U\x06module' + HISTORY + b'U\x01fU\x01stQ',  # torch would write a file beside a changed class
        FLOAT + b'(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x01tb',  # numbers that numpy takes for addresses
        b'cnumpy\ndtype\nU\x01O\x85R',
    ],
)
def test_instructions_that_would_do_more_than_hold_values(instructions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile('a.pth', 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02' + instructions + b'.')
        archive.writestr('a/byteorder', 'little')
        archive.writestr('a/version', '3')
    with pytest.raises(CheckpointError, match='refused, because it|damaged|TorchScript'):
        read_checkpoint('a.pth')
    assert os.listdir() == ['a.pth'] and HistoryBuffer.mean.__defaults__ == (None,)


def test_a_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Identity()), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='TorchScript'):
        read_checkpoint(tmp_path / 'a.pth')


def test_files_without_weights(read):
    for content in ([1, 2], dict(epoch=3), 'text'):
        with pytest.raises(CheckpointError, match='holds no weights'):
            read(content)


def test_module_prefix_and_bare_state_dicts():
    weight = torch.ones(1)
    assert state_dict_of({'state_dict': {'module.a': weight}}) == {'a': weight}
    assert state_dict_of({'a': weight}) == {'a': weight}
    state = {'module.weight': weight, 'head.weight': weight}  # a module called module keeps its name
    assert state_dict_of(state).keys() == state.keys()


def test_fine_tuning_may_replace_a_head_but_not_most_of_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    state = model.state_dict()
    other = dict(state, **{'2.weight': torch.ones(5, 2), '2.bias': torch.ones(5)})
    check_state_dict(model, other, 'a.pth', partial=True)
    with pytest.raises(CheckpointError, match=r'2 of another shape \(2.weight \(5, 2\) for \(3, 2\)'):
        check_state_dict(model, other, 'a.pth')
    with pytest.raises(CheckpointError, match='4 of 6 keys missing'):
        check_state_dict(model, {key: state[key] for key in ('0.weight', '1.weight')}, 'a.pth', partial=True)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_loaders_that_are_not_strict_refuse_weights_of_another_network(scope):
    """What the stock inferencers do: mmengine's loader, with nothing of ours around it."""
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
        (deep, orepa, 'does not fit'),
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


def test_other_ways_to_write_are_read(read):
    assert read(dict(state_dict=STATE), _use_new_zipfile_serialization=False)['state_dict']['bn.bias'].tolist() == [1, 1]
    if not SAFE_GLOBALS:
        return  # always with checksums
    torch.serialization.set_crc32_options(False)
    try:
        assert read(dict(state_dict=STATE))['state_dict'].keys() == STATE.keys()
    finally:
        torch.serialization.set_crc32_options(True)


def test_weights_of_another_kind_are_refused(read):
    model = torch.nn.Linear(4, 4)
    weight = torch.eye(4)
    for other in (weight.int(), weight.to_sparse(), torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)):
        with pytest.raises(CheckpointError, match='no plain floating-point tensors'):
            check_state_dict(model, dict(weight=other, bias=torch.zeros(4)), 'a.pth')
    check_state_dict(model, dict(weight=weight.half(), bias=torch.zeros(4)), 'a.pth')
    with pytest.raises(CheckpointError, match='without numbers'):
        read(dict(state_dict=dict(weight=torch.empty(4, 4, device='meta'))))


@pytest.mark.parametrize(
    'content',
    [
        {f'_orig_mod.{key}': value for key, value in STATE.items()},  # compiled
        dict(state_dict={key.replace('conv.', 'conv._orig_mod.'): value for key, value in STATE.items()}),  # a part of it
        dict(state_dict={f'module._orig_mod.{key}': value for key, value in STATE.items()}),  # then distributed
        dict(model=STATE, optimizer={}, epoch=3),  # timm and torchvision
        dict(model_state_dict=STATE, epoch=3),
        *({name: torch.tensor(3)} | {f'module.{key}': value for key, value in STATE.items()} for name in ('n_averaged', 'steps')),
    ],
)
def test_what_wrappers_and_other_programs_write_is_read(content, read):
    """By the check and by mmengine's loader alike, which looks into "state_dict" or at the whole."""
    checkpoint = read(content)
    assert state_dict_of(checkpoint).keys() == STATE.keys()
    if not {'n_averaged', 'steps'} & content.keys():  # mmengine goes on from a counter that no model has
        assert checkpoint.get('state_dict', checkpoint).keys() == STATE.keys()


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(STATE, tmp_path / 'a.safetensors')
    assert read_checkpoint(tmp_path / 'a.safetensors').keys() == STATE.keys()
    with (tmp_path / 'a.safetensors').open('rb') as file:
        assert read_checkpoint('s3://a', file=file).keys() == STATE.keys()
    whole = (tmp_path / 'a.safetensors').read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match='cut.safetensors: cut short or damaged'):
        read_checkpoint(tmp_path / 'cut.safetensors')


def test_arrays_of_numbers_are_read(read):
    for dtype in ('uint8', 'int8', 'uint16', 'float16', 'complex64', 'bool'):
        content = dict(state_dict=STATE, meta=dict(sigmas=np.ones(3, dtype), one=np.dtype(dtype).type(1)))
        assert read(content)['meta']['sigmas'].dtype == dtype


class Renaming(nn.Module):
    """As SoftTeacher and kin do, which give a plain detector's weights to teacher and student."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = (nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 1))) for _ in range(2))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in [key for key in state_dict if not key.startswith(('teacher.', 'student.'))]:
            value = state_dict.pop(key)
            state_dict.update({f'teacher.{key}': value, f'student.{key}': value})
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_models_that_rename_keys_as_they_load_are_asked():
    model, plain = Renaming(), Renaming().student.state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for strict in (False, True):
        check_state_dict(model, plain, 'a.pth', strict=strict)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match='does not fit'):
        check_state_dict(model, {'other.weight': torch.ones(2, 2)}, 'a.pth')
    with pytest.raises(CheckpointError, match='size mismatch for teacher.backbone.weight'):
        check_state_dict(model, plain | {'backbone.weight': torch.ones(3, 2)}, 'a.pth')


@pytest.mark.parametrize('keys', [('backbone',), ('backbone', 'neck'), ()])  # a backbone alone is the smaller part
def test_parts_that_a_checkpoint_has_nothing_of_may_be_new(keys):
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), neck=nn.Linear(2, 2), head=nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))))
    state = {key: value for key, value in model.state_dict().items() if key.startswith(keys)} if keys else {'x.weight': torch.ones(1)}
    with nullcontext() if keys else pytest.raises(CheckpointError, match='does not fit'):
        check_state_dict(model, state, 'a.pth', partial=True)
    with pytest.raises(CheckpointError, match='does not fit'):  # to test or to resume takes all
        check_state_dict(model, state, 'a.pth')
    with pytest.raises(CheckpointError, match='of another shape'):
        check_state_dict(model, state | {'backbone.weight': torch.ones(3, 2)}, 'a.pth', partial=True)  # of another width
