"""Checkpoints that are none, damaged or hostile, and the ways to name them."""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .kit import Case, Kit, Make, Prepare, command, config, test, train


class Payload:
    """Makes a file called ``ran`` when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / 'ran'

    def __reduce__(self):
        return Path.touch, (self.target,)


KINDS = dict(  # what the last line says of them
    missing=('no such checkpoint',),
    folder=(),
    loop=(),
    empty=('cut short or damaged',),
    text=('not a PyTorch checkpoint',),
    answer=('not a PyTorch checkpoint',),
    zeros=('not a PyTorch checkpoint',),
    page=('web page',),
    pointer=('git-LFS', 'git lfs pull'),
    pickle=(),
    oldest=('not a PyTorch checkpoint',),
    payload=('would run code',),
    truncated=('cut short or damaged',),
    flipped=('checksum',),
    archive=(),
    script=(),
    list=('holds no weights',),
    three=('holds no weights',),
    words=('holds no weights',),
    numbers=('no names of weights',),
    inner=('no names of weights',),
    meta=('meta device',),
    other=('does not fit',),
)


def raw(kind: str, kit: Kit, folder: Path) -> bytes | None:
    """The bytes of files that torch has not written, or that were changed after that."""
    if kind in ('truncated', 'flipped'):
        good = kit.checkpoint.read_bytes()
        half = len(good) // 2
        return good[:-5000] if kind == 'truncated' else good[:half] + b'x' * 16 + good[half + 16 :]
    return dict(
        empty=b'',
        text=b'hello',
        answer=b'{"error": "not found"}',
        zeros=bytes(100000),
        page=b'\n<!DOCTYPE html>\n<html><body>404</body></html>',
        pointer=b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 102530333\n',
        pickle=pickle.dumps(Payload(folder)),
        oldest=b"cposix\nsystem\n(S'touch " + str(folder / 'ran').encode() + b"'\ntR.",
    ).get(kind)


def spoilt(kind: str) -> Prepare:
    """Writes ``x.pth`` of a kind."""

    def write(kit: Kit, folder: Path) -> None:
        path, content = folder / 'x.pth', raw(kind, kit, folder)
        if content is not None:
            path.write_bytes(content)
        elif kind == 'folder':
            path.mkdir()
        elif kind == 'loop':
            path.symlink_to(path)
        elif kind == 'archive':
            with zipfile.ZipFile(path, 'w') as archive:
                archive.writestr('readme.txt', 'hello')
        elif kind == 'script':
            torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
        elif kind != 'missing':
            weight = torch.ones(3)
            contents = dict(
                payload=dict(state_dict=dict(w=weight), x=Payload(folder)),
                list=[1, 2],
                three=dict(state_dict=3),
                words=dict(state_dict={'backbone.conv1.weight': 'heavy'}),
                numbers={0: weight, 1: weight},
                inner=dict(state_dict={0: weight}),
                meta=dict(state_dict={'backbone.conv1.weight': weight.to('meta')}),
                other=dict(state_dict={'backbone.weight': weight}),
            )
            torch.save(contents[kind], path)

    return write


INIT = "model = dict({part}=dict(init_cfg=dict(type='Pretrained', checkpoint='{path}')))"
WAYS = dict(
    load_from=("load_from = 'x.pth'", (), 'imagenet'),
    resume=('', ('--resume', 'x.pth'), 'imagenet'),
    init_cfg=(INIT.format(part='backbone', path='x.pth'), (), 'imagenet'),
    neck=(INIT.format(part='neck', path='x.pth'), (), 'coco'),
    pretrained=("model = dict(pretrained='x.pth', backbone=dict(init_cfg=None))", (), 'cityscapes'),
)
CONVERT, PUBLISH = 'tools/model_converters/convert_checkpoint.py', 'tools/model_converters/publish_model.py'
EXPAND, REPARAMETERIZE = 'tools/model_converters/expand_checkpoint.py', 'tools/model_converters/reparameterize_model.py'
TOOLS = {
    'convert': ((CONVERT, 'x.pth', 'out.pth'), ('page', 'payload', 'numbers')),
    'convert back': ((CONVERT, 'x.pth', 'out.pth', '--reverse'), ('other', 'words')),
    'publish': ((PUBLISH, 'x.pth', 'out.pth'), ('page', 'payload', 'numbers')),
    'expand': ((EXPAND, 'none', 'x.pth', 'out.pth'), ('missing', 'inner', 'other')),
    'expand for a config': ((EXPAND, '{kit.config}', 'x.pth', 'out.pth'), ('other', 'pickle')),
    're-parameterize': ((REPARAMETERIZE, '{kit.config}', 'x.pth', 'out'), ('other', 'truncated')),
    'export': (('tools/deploy/export_onnx.py', '{kit.config}', 'x.pth', 'out.onnx'), ('other', 'flipped')),
}
ADDRESSES = {
    'http://127.0.0.1:9/x.pth': ('127.0.0.1:9', 'refused'),
    'torchvision://nothing': ('torchvision://nothing',),
    'open-mmlab://nothing': ('open-mmlab://nothing',),
    's3://bucket/x.pth': ('s3://bucket/x.pth',),
    'pavi://x': ('pavi://x',),
    'nothing://x': ('nothing://x',),
}


def resumed(options: tuple[str, ...], record: bytes | None = None, change: Callable[[dict], Any] | None = None) -> Make:
    """Resuming in a work dir in which ``last_checkpoint`` says ``record``, and ``x.pth`` is a good checkpoint after ``change``."""

    def prepare(kit: Kit, folder: Path) -> None:
        (folder / 'run').mkdir()
        if record is not None:
            (folder / 'run' / 'last_checkpoint').write_bytes(record)
        if change is not None:
            torch.save(change(torch.load(kit.checkpoint, weights_only=False)), folder / 'run' / 'x.pth')
            os.utime(folder / 'run' / 'x.pth', (0, 0))  # tells it from what the run writes

    return train('train_cfg = dict(max_epochs=2)', '--resume', *options, prepare=prepare)


def without(key: str) -> Callable[[dict], dict]:
    return lambda checkpoint: {name: value for name, value in checkpoint.items() if name != key}


RESUMED = {
    'from weights only': (lambda checkpoint: checkpoint['state_dict'], ('weights only', 'load_from')),
    'without an optimizer': (without('optimizer'), ('weights only',)),
    'without a description': (without('meta'), ('weights only',)),
    'with an empty description': (lambda checkpoint: dict(checkpoint, meta={}), ()),
    'with the optimizer of another model': (lambda checkpoint: dict(checkpoint, optimizer=dict(state={}, param_groups=[])), ()),
    'with a number as optimizer': (lambda checkpoint: dict(checkpoint, optimizer=3), ()),
}
RECORDS = {'an empty folder': None, 'what is not there': b'run/absent.pth', 'an empty name': b'', 'a name in binary': bytes(range(256))}


def cases() -> Iterator[Case]:
    for kind, words in KINDS.items():
        make = command('tools/test.py', '{kit.config}', 'x.pth', '--work-dir', 'run', prepare=spoilt(kind))
        yield Case(f'checkpoint to test: {kind}', make, ('x.pth', *words))
    for way, (text, options, scope) in WAYS.items():
        for kind in ('missing', 'page', 'payload', 'pickle', 'numbers', 'truncated'):
            yield Case(f'checkpoint of {way}: {kind}', train(text, *options, scope=scope, prepare=spoilt(kind)), ('x.pth',))
    for way, (words, kinds) in TOOLS.items():
        for kind in kinds:
            yield Case(f'checkpoint to {way}: {kind}', command(*words, prepare=spoilt(kind)), ('x.pth',))
    for address, words in ADDRESSES.items():
        yield Case(f'checkpoint of load_from: {address}', train(f"load_from = '{address}'"), words)
    for address in list(ADDRESSES)[:2]:
        yield Case(f'checkpoint of init_cfg: {address}', train(INIT.format(part='backbone', path=address)), ADDRESSES[address])
        make = config('', address, '--work-dir', 'run', tool='tools/test.py')
        yield Case(f'checkpoint to test: {address}', make, ADDRESSES[address])
    for name, (change, words) in RESUMED.items():
        yield Case(f'resuming {name}', resumed(('run/x.pth',), change=change), ('x.pth', *words))
    for name, record in RECORDS.items():  # there is nothing yet, so it begins
        yield Case(f'resuming from {name}', resumed((), record), status=0)
    yield Case('checkpoint to test is that of nobody', test('', scope='coco'), ('last.pth', 'does not fit'))
