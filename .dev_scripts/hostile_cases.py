"""The files and command lines of hostile_inputs.py: what users get wrong, what breaks on the way, and what somebody may send."""

import json
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = dict(
    imagenet='imagenet/orepa-resnet18-w16_imagenet-mini.py',
    coco='coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py',
    cityscapes='cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py',
)
TEXT = """
_base_ = '{base}'
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='{root}', indices=2))
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='{root}'))
test_dataloader = val_dataloader
train_cfg = dict({length}=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
"""
WEIGHTS = """
import sys
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
import orepa_mm
from orepa_mm.deploy.loading import build_model
"""


class Kit:
    """Good inputs to spoil: small datasets, a config on each, a checkpoint and an ONNX file of a classifier.

    Args:
        folder: Where they go.
        child: Runs a function in a process of its own.
    """

    def __init__(self, folder: Path, child: Callable) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for work in (self._draw, self._train, self._export):
            status, *_ = child(work)
            if status:
                raise RuntimeError(f'{work.__name__} failed: {(folder / "stderr").read_text()[-1000:]}')

    def data(self, name: str) -> Path:
        return self.folder / f'{name}-mini'

    def config(self, name: str) -> Path:
        return self.folder / f'{name}.py'

    @property
    def checkpoint(self) -> Path:
        return self.folder / 'trained' / 'last.pth'

    @property
    def onnx(self) -> Path:
        return self.folder / 'classifier.onnx'

    def _draw(self) -> None:
        import make_mini_data

        for name, (train, val, size) in dict(imagenet=(10, 5, 64), coco=(4, 2, 96), cityscapes=(4, 2, 128)).items():
            make_mini_data.make(name, self.data(name), train, val, size)
            length = 'max_iters' if name == 'cityscapes' else 'max_epochs'
            text = TEXT.format(base=ROOT / 'configs' / CONFIGS[name], root=self.data(name), length=length)
            if name != 'imagenet':
                text += 'model = dict(backbone=dict(init_cfg=None))\n'
            if name == 'coco':
                text += f"val_evaluator = dict(ann_file='{self.data(name)}/annotations/instances_val2017.json')\ntest_evaluator = val_evaluator\n"
            self.config(name).write_text(text)

    def _train(self) -> None:
        self._run('tools/train.py', self.config('imagenet'), '--work-dir', self.folder / 'trained', '--no-validate')

    def _export(self) -> None:
        self._run('tools/deploy/export_onnx.py', self.config('imagenet'), self.checkpoint, self.onnx, '--size', '32', '32')

    def _run(self, tool: str, *arguments: Any) -> None:
        import runpy
        import sys

        sys.argv = [tool, *map(str, arguments)]
        runpy.run_path(str(ROOT / tool), run_name='__main__')


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: What is wrong.
        make: Writes what is to be read into the folder that is given, where the run takes place, and returns the command line.
        words: What the last line has to say.
        status: Of the exit.
        file_size: Bytes, above which no file can be written, as on a full disk.
    """

    name: str
    make: Callable[[Kit, Path], list]
    words: tuple[str, ...] = ()
    status: int = 2
    file_size: int | None = None


CASES: list[Case] = []


def add(name: str, make: Callable, *words: str, **options: Any) -> None:
    CASES.append(Case(name, make, words, **options))


# Commands.


def trained(kit: Kit, folder: Path, text: str = '', scope: str = 'imagenet', options: tuple = ()) -> list:
    """A training whose config has ``text`` over a good one."""
    (folder / 'config.py').write_text(f"_base_ = '{kit.config(scope)}'\n{text.format(kit=kit, folder=folder)}\n")
    return ['tools/train.py', 'config.py', '--work-dir', 'run', *options]


def command(kit: Kit, folder: Path, *words: str, prepare: Callable[[Kit, Path], None] | None = None) -> list:
    """Words in which {kit.…} and {folder} are filled in."""
    if prepare is not None:
        prepare(kit, folder)
    return [word.format(kit=kit, folder=folder, config=kit.config('imagenet')) for word in words]


def tool(*words: str, prepare: Callable[[Kit, Path], None] | None = None) -> Callable:
    return partial(command, **dict(prepare=prepare)) if not words else lambda kit, folder: command(kit, folder, *words, prepare=prepare)


def setting(text: str, scope: str = 'imagenet', *options: str) -> Callable:
    return lambda kit, folder: trained(kit, folder, text, scope, options)


# Configs.

TEXTS = {
    'is empty': ('', ('config.py',)),
    'has a syntax error': ('model = (', ('config.py', 'never closed')),
    'is in another encoding': ('# caf\xe9'.encode('latin-1'), ('config.py', 'UnicodeDecodeError')),
    'has a null byte': (b'a = 1\0', ('config.py',)),
    'is a picture': (b'\x89PNG\r\n\x1a\n' + bytes(range(256)), ('config.py',)),
    'is its own base': ("_base_ = './config.py'", ('config.py', '_base_')),
    'goes round through another': ("_base_ = './other.py'", ('config.py', '_base_')),
    'has a base that is not there': ("_base_ = './absent.py'", ('absent.py',)),
    'has a base of a package that is not there': ("_base_ = 'mmnothing::a.py'", ('config.py',)),
    'has a base that its package lacks': ("_base_ = 'mmdet::nothing/nothing.py'", ('nothing',)),
    'has a number as its base': ('_base_ = 3', ('config.py',)),
    'divides by zero': ('a = 1 / 0', ('config.py', 'ZeroDivisionError')),
    'imports what is not there': ('import nothing_of_the_kind', ('config.py',)),
    'has custom imports that are not there': (
        "custom_imports = dict(imports=['nothing_of_the_kind'])",
        ('config.py', 'nothing_of_the_kind'),
    ),
    'asks for a variable that is not set': ("a = '{{ $NOT_SET_ANYWHERE: }}'", ('config.py',)),
    'nests too deep': ('a = ' + '[' * 5000 + ']' * 5000, ('config.py',)),
    'uses a reserved name': ('filename = 3', ('config.py', 'filename')),
    'exits': ('raise SystemExit', ()),
}


def config_file(content: str | bytes, name: str = 'config.py') -> Callable:
    def make(kit: Kit, folder: Path) -> list:
        (folder / 'other.py').write_text("_base_ = './config.py'")
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return ['tools/train.py', name, '--work-dir', 'run']

    return make


for key, (content, words) in TEXTS.items():
    if key != 'exits':
        add(f'config {key}', config_file(content), *words)
add('config of another kind', config_file('a = 1', 'config.txt'), 'config.txt', 'Only py/yml/yaml/json')
add('config in yaml, broken', config_file('a: [', 'config.yaml'), 'config.yaml')
add('config in json, broken', config_file('{"a": ', 'config.json'), 'config.json')
add('config in json that is a list', config_file('[1, 2]', 'config.json'), 'config.json')
add('config with a line feed and an escape in its name', config_file('model = (', 'con\nfig\x1b[2J.py'), 'never closed')
add('config that is a folder', tool('tools/train.py', '{folder}'), 'no such config')
add('config that is not there, to test', tool('tools/test.py', 'absent.py', 'absent.pth'), 'absent.py', 'no such config')
add('config that is not there, to sweep', tool('tools/analysis/sweep_stem_lr.py', 'absent.py'), 'absent.py', 'no such config')
add('config that is broken, to sweep', lambda kit, f: ['tools/analysis/sweep_stem_lr.py', *config_file('model = (')(kit, f)[1:2]], 'config.py', 'never closed')  # fmt: skip
add(
    'config without an optimizer, to sweep',
    lambda kit, f: ['tools/analysis/sweep_stem_lr.py', *config_file('a = 1')(kit, f)[1:2]],
    'config.py',
)
add(
    'config that is broken, to check',
    lambda kit, f: ['tools/preflight.py', *config_file('1 / 0')(kit, f)[1:2]],
    'config.py',
    'ZeroDivision',
)

SETTINGS = {
    'a depth there is not': ('model = dict(backbone=dict(depth=20))', ('config.py', 'model.backbone', '20')),
    'a method there is not': ("model = dict(backbone=dict(method='orepa'))", ('config.py', 'model.backbone', 'orepa')),
    'an argument there is not': ('model = dict(backbone=dict(dpeth=18))', ('config.py', 'model.backbone', 'dpeth')),
    'a backbone there is not': ("model = dict(backbone=dict(type='OREPAResNt'))", ('config.py', 'model.backbone', 'OREPAResNt')),
    'no type': ('model = dict(backbone=dict(_delete_=True, depth=18))', ('config.py', 'type')),
    'a number as the model': ('model = 3', ('config.py',)),
    'no model': ('model = None', ('config.py',)),
    'no training data': ('train_dataloader = None', ('config.py',)),
    'a number as training data': ('train_dataloader = dict(_delete_=True, dataset=3, batch_size=1, num_workers=0)', ('config.py',)),
    'a dataset there is not': ("train_dataloader = dict(dataset=dict(type='CustomDatset'))", ('CustomDatset', 'no dataset')),
    'an argument its dataset has not': ('train_dataloader = dict(dataset=dict(metainf={{}}))', ('metainf',)),
    'a step there is not': ("train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadPicture')]))", ('config.py', 'LoadPicture')),
    'an argument its step has not': (
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile', colour=3)]))",
        ('config.py', 'LoadImageFromFile', 'colour'),
    ),
    'an optimizer there is not': ("optim_wrapper = dict(optimizer=dict(type='SDG'))", ('config.py', 'optim_wrapper', 'SDG')),
    'an argument its optimizer has not': ('optim_wrapper = dict(optimizer=dict(betas=3))', ('config.py', 'betas')),
    'a word as learning rate': ("optim_wrapper = dict(optimizer=dict(lr='fast'))", ('config.py', 'SGD')),
    'a scheduler there is not': ("param_scheduler = [dict(type='CosineLr')]", ('config.py', 'CosineLr')),
    'an argument its loop has not': ('train_cfg = dict(max_epoch=3)', ('config.py', 'max_epoch')),
    'a word as number of epochs': ("train_cfg = dict(max_epochs='ten')", ('config.py',)),
    'a hook there is not': ("custom_hooks = [dict(type='CheckHok')]", ('config.py', 'custom_hooks[0]', 'CheckHok')),
    'an argument its hook has not': (
        "custom_hooks = [dict(type='ReparameterizeHook', tolerence=1)]",
        ('config.py', 'custom_hooks[0]', 'tolerence'),
    ),
    'a word as hooks': ("custom_hooks = 'CheckHook'", ('config.py',)),
    'a metric there is not': ("val_evaluator = dict(type='Acuracy')", ('config.py', 'val_evaluator', 'Acuracy')),
    'a viewer there is not': ("visualizer = dict(vis_backends=[dict(type='Screen')])", ('config.py', 'Screen')),
    'a toolbox there is not': ("default_scope = 'mmfoo'", ('config.py', 'mmfoo')),
    'no toolbox': ('default_scope = None', ('config.py',)),
    'a negative batch': ('train_dataloader = dict(batch_size=-2)', ('config.py',)),
    'a word as number of workers': ("train_dataloader = dict(num_workers='two')", ('config.py',)),
    'another number of classes': ('model = dict(head=dict(num_classes=7))', ('model.head.num_classes=7', '5 classes')),
    'a word as number of classes': ("model = dict(head=dict(num_classes='five'))", ('config.py', 'model.head')),
    'a word as seed': ("randomness = dict(seed='x')", ('config.py',)),
    'a log level there is not': ("log_level = 'LOUD'", ('config.py', 'LOUD')),
    'a runner there is not': ("runner_type = 'Walker'", ('config.py', 'Walker')),
    'a work dir that is a file': ("work_dir = '{kit.onnx}'", ('classifier.onnx',)),
    'a viewer that saves below a file': ("visualizer = dict(save_dir='{kit.onnx}/x')", ('classifier.onnx',)),
}
for key, (text, words) in SETTINGS.items():
    options = () if 'work dir' in key else None
    make = setting(text)
    if 'work dir' in key:
        make = lambda kit, folder, text=text: trained(kit, folder, text)[:2]  # noqa: E731
    add(f'setting of {key}', make, *words)
add('setting of a width that the head has not', setting('model = dict(head=dict(in_channels=100))'), 'config.py', 'traceback in', status=1)
add('setting of a width to test', lambda kit, f: ['tools/test.py', *trained(kit, f, 'model = dict(head=dict(in_channels=100))')[1:2], kit.checkpoint, '--work-dir', 'run'], 'last.pth')  # fmt: skip
add('setting of no data to test', lambda kit, f: ['tools/test.py', *trained(kit, f, 'test_dataloader = None\ntest_cfg = None\ntest_evaluator = None')[1:2], kit.checkpoint, '--work-dir', 'run'], 'config.py')  # fmt: skip
add('setting of no data to test, augmented', lambda kit, f: ['tools/test.py', *trained(kit, f, 'test_dataloader = None\ntest_cfg = None\ntest_evaluator = None')[1:2], kit.checkpoint, '--tta', '--work-dir', 'run'], 'config.py')  # fmt: skip

OPTIONS = {
    'without a value': ('a',),
    'with brackets that do not close': ('a=[(1,2]',),
    'into a number': ('model.backbone.depth.x=1',),
    'behind the end of a list': ('train_pipeline.99.type=x',),
    'of a type there is not': ('model.backbone.type=Nothing',),
}
for key, options in OPTIONS.items():
    words = ('config.py', 'Nothing') if 'type' in key else ('--cfg-options',)
    add(f'option {key}', setting('', 'imagenet', '--cfg-options', *options), *words)
add('option that is unknown', setting('', 'imagenet', '--resum'), status=2)
add('option --launcher without its variables', setting('', 'imagenet', '--launcher', 'pytorch'), status=2)
add('option --launcher slurm outside slurm', setting('', 'imagenet', '--launcher', 'slurm'), status=2)
add('option --amp without a GPU', setting('', 'imagenet', '--amp'), '--amp')
add('option --work-dir in a file', setting('', 'imagenet', '--work-dir', '/dev/null/x'), '/dev/null')
add('option --work-dir in /proc', setting('', 'imagenet', '--work-dir', '/proc/x'), '/proc/x')
add('option --work-dir too long', setting('', 'imagenet', '--work-dir', 'x' * 300), 'File name too long')


# Checkpoints, and the ways to name them.


class Payload:
    """Makes a file called ``ran`` when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / 'ran'

    def __reduce__(self):
        return Path.touch, (self.target,)


def spoilt(kind: str) -> Callable[[Kit, Path], None]:
    """Writes ``x.pth`` of a kind into a folder."""

    def write(kit: Kit, folder: Path) -> None:
        import torch

        path, good = folder / 'x.pth', kit.checkpoint
        raw = dict(
            empty=b'',
            text=b'hello',
            page=b'\n<!DOCTYPE html>\n<html><body>404</body></html>',
            pointer=b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 102530333\n',
            answer=b'{"error": "not found"}',
            pickle=pickle.dumps(Payload(folder)),
            oldest=b"cposix\nsystem\n(S'touch " + str(folder / 'ran').encode() + b"'\ntR.",
            truncated=good.read_bytes()[:-5000],
            zeros=bytes(100000),
        )
        if kind in raw:
            path.write_bytes(raw[kind])
        elif kind == 'folder':
            path.mkdir()
        elif kind == 'flipped':
            content = bytearray(good.read_bytes())
            content[len(content) // 2 : len(content) // 2 + 16] = b'x' * 16
            path.write_bytes(content)
        elif kind == 'archive':
            with zipfile.ZipFile(path, 'w') as archive:
                archive.writestr('readme.txt', 'hello')
        elif kind == 'script':
            torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
        elif kind == 'loop':
            path.symlink_to(path)
        elif kind != 'missing':
            contents = dict(
                list=[1, 2],
                payload=dict(state_dict=dict(w=torch.ones(1)), x=Payload(folder)),
                numbers={0: torch.ones(1), 1: torch.ones(1)},
                inner=dict(state_dict={0: torch.ones(1)}),
                other=dict(state_dict={'backbone.weight': torch.ones(3)}),
                meta=dict(state_dict={'backbone.conv1.weight': torch.ones(1, device='meta')}),
                words=dict(state_dict={'backbone.conv1.weight': 'heavy'}),
                three=dict(state_dict=3),
            )
            torch.save(contents[kind], path)

    return write


WORDS = dict(
    missing=('no such checkpoint',),
    folder=('x.pth',),
    empty=('cut short or damaged',),
    text=('not a PyTorch checkpoint',),
    page=('web page',),
    pointer=('git-LFS', 'git lfs pull'),
    answer=('not a PyTorch checkpoint',),
    pickle=('x.pth',),
    oldest=('not a PyTorch checkpoint',),
    truncated=('cut short or damaged',),
    zeros=('x.pth',),
    flipped=('x.pth', 'checksum'),
    archive=('x.pth',),
    script=('x.pth',),
    loop=('x.pth',),
    list=('holds no weights',),
    payload=('would run code',),
    numbers=('no names of weights',),
    inner=('no names of weights',),
    other=('does not fit',),
    meta=('meta device',),
    words=('holds no weights',),
    three=('holds no weights',),
)


def to_test(kind: str) -> Callable:
    return tool('tools/test.py', '{config}', 'x.pth', '--work-dir', 'run', prepare=spoilt(kind))


def named(kind: str, text: str, scope: str = 'imagenet', *options: str) -> Callable:
    def make(kit: Kit, folder: Path) -> list:
        spoilt(kind)(kit, folder)
        return trained(kit, folder, text, scope, options)

    return make


for kind, words in WORDS.items():
    add(f'checkpoint to test: {kind}', to_test(kind), 'x.pth', *words)
WAYS = dict(
    load_from=("load_from = 'x.pth'", 'imagenet', ()),
    resume=('', 'imagenet', ('--resume', 'x.pth')),
    init_cfg=("model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth')))", 'imagenet', ()),
    neck=("model = dict(neck=dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth')))", 'coco', ()),
    pretrained=("model = dict(pretrained='x.pth', backbone=dict(init_cfg=None))", 'cityscapes', ()),
)
for way, (text, scope, options) in WAYS.items():
    for kind in ('missing', 'page', 'payload', 'pickle', 'numbers', 'truncated'):
        add(f'checkpoint of {way}: {kind}', named(kind, text, scope, *options), 'x.pth')
ADDRESSES = {
    'http://127.0.0.1:9/x.pth': ('127.0.0.1:9', 'refused'),
    'torchvision://nothing': ('torchvision://nothing',),
    'open-mmlab://nothing': ('open-mmlab://nothing',),
    's3://bucket/x.pth': ('s3://bucket/x.pth',),
    'pavi://x': ('pavi://x',),
    'nothing://x': ('nothing://x',),
}
for address, words in ADDRESSES.items():
    add(f'checkpoint of load_from: {address}', setting(f"load_from = '{address}'"), *words)
    if ':9' in address or 'vision' in address:
        text = f"model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{address}')))"
        add(f'checkpoint of init_cfg: {address}', setting(text), *words)
        add(f'checkpoint to test: {address}', tool('tools/test.py', '{config}', address, '--work-dir', 'run'), *words)


def resumed(record: bytes | None, content: Callable[[Any], Any] | None = None) -> Callable:
    """A work dir in which ``last_checkpoint`` says something; ``content`` makes its checkpoint of a good one."""

    def make(kit: Kit, folder: Path) -> list:
        import torch

        (folder / 'run').mkdir()
        if content is not None:
            torch.save(content(torch.load(kit.checkpoint, weights_only=False)), folder / 'run' / 'x.pth')
            import os

            os.utime(folder / 'run' / 'x.pth', (0, 0))
        if record is not None:
            (folder / 'run' / 'last_checkpoint').write_bytes(record)
        return trained(kit, folder, 'train_cfg = dict(max_epochs=2)', options=('--resume', *(['run/x.pth'] if content else [])))

    return make


def without(*keys: str) -> Callable[[dict], dict]:
    return lambda checkpoint: {key: value for key, value in checkpoint.items() if key not in keys}


add('resuming from weights only', resumed(None, lambda c: c['state_dict']), 'x.pth', 'weights only', 'load_from')
add('resuming without an optimizer', resumed(None, without('optimizer')), 'x.pth', 'weights only')
add('resuming without a count', resumed(None, without('meta')), 'x.pth', 'weights only')
add('resuming with an empty description', resumed(None, lambda c: dict(c, meta={})), 'x.pth')
add('resuming with an optimizer of other parameters', resumed(None, lambda c: dict(c, optimizer=dict(state={}, param_groups=[]))), 'x.pth')
add('resuming with a number as optimizer', resumed(None, lambda c: dict(c, optimizer=3)), 'x.pth')
add('resuming from an empty folder', resumed(None), status=0)
add('resuming from what is not there', resumed(b'run/absent.pth'), status=0)
add('resuming from an empty name', resumed(b''), status=0)
add('resuming from a name in binary', resumed(bytes(range(256))), status=0)

CONVERTERS = {
    'convert': ('tools/model_converters/convert_checkpoint.py', 'x.pth', 'out.pth'),
    'convert back': ('tools/model_converters/convert_checkpoint.py', 'x.pth', 'out.pth', '--reverse'),
    'expand': ('tools/model_converters/expand_checkpoint.py', 'none', 'x.pth', 'out.pth'),
    'expand for a config': ('tools/model_converters/expand_checkpoint.py', '{config}', 'x.pth', 'out.pth'),
    'publish': ('tools/model_converters/publish_model.py', 'x.pth', 'out.pth'),
    'reparameterize': ('tools/model_converters/reparameterize_model.py', '{config}', 'x.pth', 'out'),
    'export': ('tools/deploy/export_onnx.py', '{config}', 'x.pth', 'out.onnx'),
}
for way, words in CONVERTERS.items():
    for kind in (
        ('page', 'payload', 'numbers') if way in ('convert', 'publish') else ('missing', 'inner') if way == 'expand' else ('other',)
    ):
        add(f'checkpoint to {way}: {kind}', tool(*words, prepare=spoilt(kind)), 'x.pth')


# Datasets.


def with_data(name: str, spoil: Callable[[Path], Any], text: str = '', options: tuple[str, ...] = ()) -> Callable:
    """A training on a copy of a dataset that ``spoil`` changes."""

    def make(kit: Kit, folder: Path) -> list:
        root = folder / 'data'
        shutil.copytree(kit.data(name), root)
        spoil(root)
        return trained(kit, folder, f"train_dataloader = dict(dataset=dict(data_root='{root}'))\n{text}", name, options)

    return make


def annotations(change: Callable[[dict], Any] | bytes | str) -> Callable:
    """A training on a COCO set whose annotation file is another."""

    def spoil(root: Path) -> None:
        path = root / 'annotations' / 'instances_train2017.json'
        if callable(change):
            content = json.loads(path.read_text())
            changed = change(content)
            path.write_text(json.dumps(content if changed is None else changed))
        else:
            path.write_bytes(change if isinstance(change, bytes) else change.encode())

    return with_data('coco', spoil)


def every(kind: str, **values: Any) -> Callable[[dict], None]:
    """Sets values of the first two entries of a kind, or takes those away that are to be None."""

    def change(content: dict) -> None:
        for entry in content[kind][:2]:
            for key, value in values.items():
                if value is None:
                    entry.pop(key)
                else:
                    entry[key] = value

    return change


FILE = 'instances_train2017.json'
for kind, keys in dict(
    images=('id', 'file_name', 'width', 'height'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation'),
    categories=('id', 'name'),
).items():
    add(f'coco without {kind}', annotations(lambda c, kind=kind: {k: v for k, v in c.items() if k != kind}), FILE, f'"{kind}"')
    add(f'coco with a number as {kind}', annotations(lambda c, kind=kind: dict(c, **{kind: 3})), FILE, kind)
    add(f'coco with numbers as {kind}', annotations(lambda c, kind=kind: dict(c, **{kind: [3, 4]})), FILE, f'{kind}[0]')
    for key in keys:
        add(f'coco {kind} without {key}', annotations(every(kind, **{key: None})), FILE, f'{kind}[0]', key)
COCO = {
    'that is empty': ('', ('not JSON',)),
    'cut short': ('{"images": [', ('not JSON',)),
    'in another encoding': ('{"images": "\xe9"}'.encode('latin-1'), ('not JSON',)),
    'that is a list': ('[]', ('not a COCO',)),
    'nested too deep': ('[' * 100000, ('JSON',)),
    'with a box of three': (every('annotations', bbox=[1, 2, 3]), ('annotations[0].bbox',)),
    'with a box of words': (every('annotations', bbox=['a', 'b', 'c', 'd']), ('annotations[0].bbox',)),
    'with a box that is not finite': (every('annotations', bbox=[0, 0, float('nan'), 1]), ('annotations[0].bbox',)),
    'with a word as area': (every('annotations', area='large'), ('annotations[0].area',)),
    'with a list as image_id': (every('annotations', image_id=[1]), ('annotations[0].image_id',)),
    'with a dict as category_id': (every('annotations', category_id={}), ('annotations[0].category_id',)),
    'with a word as outline': (every('annotations', segmentation='round'), ('annotations[0].segmentation',)),
    'with an outline of words': (every('annotations', segmentation=[['a']]), ('annotations[0].segmentation',)),
    'with outlines without a size': (every('annotations', segmentation=dict(counts='x')), ('annotations[0].segmentation',)),
    'with a negative width': (every('images', width=-4), ('images[0].width',)),
    'with a number as file': (every('images', file_name=3), ('images[0].file_name',)),
    'with pictures elsewhere': (every('images', file_name='../../nothing.jpg'), ('no such picture',)),
    'with a number as name': (every('categories', name=3), ('categories[0].name',)),
    'with equal image ids': (every('images', id=1), ('ids of its images',)),
    'with equal annotation ids': (every('annotations', id=1), ('ids of its annotations',)),
    'with equal category ids': (every('categories', id=1), ('ids of its categories',)),
    'with equal names': (every('categories', name='cat'), ('names of its categories',)),
    'without pictures': (lambda c: dict(c, images=[]), ('images',)),
    'without categories': (lambda c: dict(c, categories=[]), ('categories',)),
    'without annotations at all': (lambda c: dict(c, annotations=[]), ('no annotations',)),
    'of pictures it does not list': (lambda c: [a.update(image_id=99) for a in c['annotations']] and None, ('image_id', '99')),
    'of categories it does not list': (lambda c: [a.update(category_id=99) for a in c['annotations']] and None, ('category_id', '99')),
    'of other categories': (lambda c: [x.update(name=f'n{x["id"]}') for x in c['categories']] and None, ('no category', 'metainfo')),
}
for key, (change, words) in COCO.items():
    add(f'coco file {key}', annotations(change), FILE if 'elsewhere' not in key else 'nothing.jpg', *words)


def first(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def broken(pattern: str, content: bytes | None = None, how: str = '') -> Callable[[Path], None]:
    """Replaces the first file like a pattern: by bytes, or a half of it, nothing, a folder or a link to itself."""

    def spoil(root: Path) -> None:
        path = first(root, pattern)
        old = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        elif how == 'half':
            path.write_bytes(old[: len(old) // 2])
        elif how == 'folder':
            path.mkdir()
        elif how == 'loop':
            path.symlink_to(path)

    return spoil


def picture(*size: int, mode: str = 'RGB', value: Any = 0) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, 'PNG')
    return buffer.getvalue()


def header(width: int, height: int) -> bytes:
    """The beginning of a PNG file that says how large it is, and no more."""
    import struct
    import zlib

    head = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    body = b'IDAT' + zlib.compress(bytes(1000))
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(part) - 4) + part + struct.pack('>I', zlib.crc32(part)) for part in (head, body)
    )


JPG = 'train/circle/*.jpg'
for key, spoil in {
    'cut short': broken(JPG, how='half'),
    'is text': broken(JPG, b'hello'),
    'is empty': broken(JPG, b''),
    'is a web page': broken(JPG, b'<html>'),
    'is a folder': broken(JPG, how='folder'),
    'links to itself': broken(JPG, how='loop'),
    'says it has 1.6 billion pixels': broken(JPG, header(40000, 40000)),
}.items():
    add(f'picture {key}', with_data('imagenet', spoil), '.jpg' if 'folder' not in key else '', status=0 if 'folder' in key else 2)
add('picture that is there and listed, missing', with_data('coco', broken('train2017/*.jpg')), '.jpg', 'no such picture')
add('picture that is a folder, listed', with_data('coco', broken('train2017/*.jpg', how='folder')), '.jpg')
add('picture cut short, not checked', with_data('imagenet', broken('train/*/*.jpg', b'hello'), 'train_dataloader = dict(dataset=dict(data_root="{folder}/data", indices=0))', ('--no-check-data',)), 'traceback', status=2)  # fmt: skip
WORKERS = "train_dataloader = dict(num_workers=2, dataset=dict(data_root='{folder}/data', indices=None))"
add('picture that is no picture, in a worker', with_data('imagenet', broken('train/*/*.jpg', b'hello'), WORKERS, ('--no-check-data',)), 'config.py', 'traceback in', status=1)  # fmt: skip
add('picture that goes while it trains, in a worker', with_data('coco', broken('train2017/*.jpg'), WORKERS, ('--no-check-data',)), '.jpg', 'No such file')  # fmt: skip
LABELS = 'gtFine/train/mini/*_labelTrainIds.png'
add('label map of another size', with_data('cityscapes', broken(LABELS, picture(30, 20, mode='L'))), 'labelTrainIds.png', '30 x 20')
add('label map in colour', with_data('cityscapes', broken(LABELS, picture(128, 64))), 'in colour')
add('label map of other classes', with_data('cityscapes', broken(LABELS, picture(128, 64, mode='L', value=77))), 'label 77')
add('label map that is missing', with_data('cityscapes', broken(LABELS)), 'no such label map')
add('label map that is text', with_data('cityscapes', broken(LABELS, b'hello')), 'cannot be read as a label map')
add('label map of 1.6 billion pixels', with_data('cityscapes', broken(LABELS, header(40000, 40000))), '40000 x 40000')
add('data of a folder that is not there', setting("train_dataloader = dict(dataset=dict(data_root='absent'))"), 'absent', 'data_root')
add('data in a file', setting("train_dataloader = dict(dataset=dict(data_root='{kit.onnx}'))"), 'classifier.onnx')
add('data at an address that refuses', setting("train_dataloader = dict(dataset=dict(data_root='http://127.0.0.1:9/', ann_file='a.json'))", 'coco'), 'refused')  # fmt: skip
add('data in a list that is not there', setting("train_dataloader = dict(dataset=dict(ann_file='absent.txt'))"), 'absent.txt')
LIST = "train_dataloader = dict(dataset=dict(ann_file='{folder}/config.py', data_prefix='train'))"
add('data in a list that is none', setting(LIST), 'config.py')
add('data with classes in a file that is not there', setting("train_dataloader = dict(dataset=dict(metainfo=dict(classes='absent.txt')))"), 'absent.txt')  # fmt: skip
add('data with classes in a picture', setting("train_dataloader = dict(dataset=dict(metainfo=dict(_delete_=True, classes='{kit.onnx}')))"), 'config.py')  # fmt: skip
add('data with an evaluator of a file that is not there', setting("val_evaluator = dict(ann_file='absent.json')", 'coco'), 'absent.json')
add('data with an evaluator of a broken file', with_data('coco', lambda root: (root / 'broken.json').write_text('{"images": []}'), "val_evaluator = dict(ann_file='{folder}/data/broken.json')"), 'broken.json')  # fmt: skip
add('data in label maps of a list that is not there', setting("train_dataloader = dict(dataset=dict(ann_file='absent.txt'))", 'cityscapes'), 'absent.txt')  # fmt: skip
add('data in no class folders', with_data('imagenet', lambda root: [shutil.rmtree(path) for path in (root / 'train').iterdir()]), 'no class folders')  # fmt: skip
add('data in wrappers', setting("train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(type='CocoDataset', ann_file='absent.json')))", 'coco'), 'absent.json')  # fmt: skip
add('data in wrappers without end', setting("d = dict(type='RepeatDataset', times=2)\nfor _ in range(300):\n    d = dict(type='RepeatDataset', times=2, dataset=d)\ntrain_dataloader = dict(dataset=dict(_delete_=True, **d))"), 'config.py')  # fmt: skip


# Outputs.

TEST = ('tools/test.py', '{config}', '{kit.checkpoint}', '--work-dir', 'run')


def there(kit: Kit, folder: Path) -> None:
    """A file and a folder that an output has the name of."""
    (folder / 'out').write_text('mine')
    (folder / 'outdir').mkdir()
    (folder / 'outdir' / 'mine.txt').write_text('mine')


OUTPUTS = {
    '--metrics in a folder': (*TEST, '--metrics', 'outdir'),
    '--metrics below a file': (*TEST, '--metrics', 'out/x.json'),
    '--metrics in /proc': (*TEST, '--metrics', '/proc/x/x.json'),
    '--metrics on a device': (*TEST, '--metrics', '/dev/null'),
    '--metrics too long': (*TEST, '--metrics', 'x' * 300),
    '--out below a file': (*TEST, '--out', 'out/x.pkl'),
    '--out of another kind': (*TEST, '--out', 'x.json'),
    '--out in a folder': (*TEST, '--out', 'outdir.pkl/'),
    '--show-dir in a file': (*TEST, '--show-dir', 'out'),
    'of the benchmark in a file': (
        'tools/benchmark.py',
        '--arch',
        'resnet18',
        '--size',
        '32',
        '--repeats',
        '1',
        '--no-memory',
        '--out',
        'out',
    ),
    'of the sweep in a file': ('tools/analysis/sweep_stem_lr.py', '{kit.folder}/coco.py', '--out', 'out'),
    'of a conversion below a file': ('tools/model_converters/convert_checkpoint.py', '{kit.checkpoint}', 'out/x.pth', '--reverse'),
    'of a conversion that is there': ('tools/model_converters/convert_checkpoint.py', '{kit.checkpoint}', 'out', '--reverse'),
    'of an expansion below a file': ('tools/model_converters/expand_checkpoint.py', 'none', '{kit.checkpoint}', 'out/x.pth'),
    'of publishing below a file': ('tools/model_converters/publish_model.py', '{kit.checkpoint}', 'out/x.pth'),
    'of re-parameterizing in a file': ('tools/model_converters/reparameterize_model.py', '{config}', '{kit.checkpoint}', 'out'),
    'of re-parameterizing in a folder': ('tools/model_converters/reparameterize_model.py', '{config}', '{kit.checkpoint}', 'outdir'),
    'of an export in a folder': ('tools/deploy/export_onnx.py', '{config}', '{kit.checkpoint}', 'outdir', '--force'),
    'of an export that is there': ('tools/deploy/export_onnx.py', '{config}', '{kit.checkpoint}', 'out'),
    'of quantizing below a file': ('tools/deploy/quantize_onnx.py', '{kit.onnx}', '{kit.folder}/imagenet-mini', 'out/x.onnx'),
    'of quantizing over its input': ('tools/deploy/quantize_onnx.py', '{kit.onnx}', '{kit.folder}/imagenet-mini', '{kit.onnx}', '--force'),
    'of running in a file': (
        'tools/deploy/run_onnx.py',
        '{kit.onnx}',
        '{kit.folder}/imagenet-mini/train/circle/train_00000.jpg',
        '--out-dir',
        'out',
    ),
    'of drawing in a file': ('demo/make_mini_data.py', 'imagenet', '--out', 'out', '--train', '1', '--val', '1'),
    'of the pipeline in a folder': ('demo/pipeline.py', '--out', 'outdir'),
    'of the pipeline in a file': ('demo/pipeline.py', '--out', 'out'),
}
for key, words in OUTPUTS.items():
    add(f'output {key}', tool(*words, prepare=there), {'--metrics in /proc': '/proc/x', '--metrics on a device': '/dev/null'}.get(key, ''))

FULL = {
    'a training': ('tools/train.py', '{config}', '--work-dir', 'run'),
    'a conversion': ('tools/model_converters/convert_checkpoint.py', '{kit.checkpoint}', 'out.pth', '--reverse'),
    'publishing': ('tools/model_converters/publish_model.py', '{kit.checkpoint}', 'out.pth'),
    'an export': ('tools/deploy/export_onnx.py', '{config}', '{kit.checkpoint}', 'out.onnx', '--size', '32', '32'),
    're-parameterizing': ('tools/model_converters/reparameterize_model.py', '{config}', '{kit.checkpoint}', 'out'),
    'predictions': (*TEST, '--out', 'out.pkl'),
}
for key, words in FULL.items():
    size = 1000 if key == 'predictions' else 300_000
    add(f'full disk of {key}', tool(*words), 'File too large', file_size=size)


# Exported networks.


def foreign(**facts: str) -> Callable[[Kit, Path], None]:
    """Writes ``x.onnx``: the classifier with other metadata."""

    def write(kit: Kit, folder: Path) -> None:
        import onnx

        model = onnx.load(kit.onnx)
        found = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, found | facts if facts else {})
        onnx.save(model, folder / 'x.onnx')

    return write


def beside(name: str, content: bytes) -> Callable[[Kit, Path], None]:
    return lambda kit, folder: (folder / name).write_bytes(content) and None


JPEG = '{kit.folder}/imagenet-mini/train/circle/train_00000.jpg'
RUN = ('tools/deploy/run_onnx.py',)
add('onnx that is not there', tool(*RUN, 'absent.onnx', JPEG), 'absent.onnx')
add('onnx that is text', tool(*RUN, 'x.onnx', JPEG, prepare=beside('x.onnx', b'hello')), 'x.onnx')
add('onnx without metadata', tool(*RUN, 'x.onnx', JPEG, prepare=foreign()), 'x.onnx', 'metadata')
add('onnx of another task', tool(*RUN, 'x.onnx', JPEG, prepare=foreign(task='flying')), 'x.onnx', 'flying')
add('onnx with steps that are none', tool(*RUN, 'x.onnx', JPEG, prepare=foreign(prepare='[')), 'x.onnx')
add('onnx with steps there are not', tool(*RUN, 'x.onnx', JPEG, prepare=foreign(prepare='[{"step": "resize"}]')), 'x.onnx', status=1)
add('onnx and a picture that is not there', tool(*RUN, '{kit.onnx}', 'absent.jpg'), 'absent.jpg')
add('onnx and a picture that is text', tool(*RUN, '{kit.onnx}', 'x.jpg', prepare=beside('x.jpg', b'hello')), 'x.jpg')
LARGE = picture(14000, 14000, mode='1')
add('onnx and a picture of 196 megapixels', tool(*RUN, '{kit.onnx}', 'x.png', prepare=beside('x.png', LARGE)), 'x.png', 'pixels')
QUANTIZE = ('tools/deploy/quantize_onnx.py', '{kit.onnx}')
add('quantizing with a folder that is not there', tool(*QUANTIZE, 'absent', 'out.onnx'), 'absent')
add('quantizing with an empty folder', tool(*QUANTIZE, '{folder}/tmp', 'out.onnx'), 'no picture')
add('quantizing with 196 megapixels', tool(*QUANTIZE, '{folder}', 'out.onnx', prepare=beside('x.png', LARGE)), 'x.png', 'pixels')
add('quantizing no network', tool('tools/deploy/quantize_onnx.py', 'x.onnx', '{kit.folder}', 'out.onnx', prepare=beside('x.onnx', b'hello')), 'x.onnx')  # fmt: skip
add('quantizing with no pictures', tool(*QUANTIZE, '{kit.folder}', 'out.onnx', '--count', '0'), '--count')
add('quantizing to a size of 0', tool(*QUANTIZE, '{kit.folder}', 'out.onnx', '--size', '0', '0'), '--size')
EXPORT = ('tools/deploy/export_onnx.py', '{config}', '{kit.checkpoint}', 'out.onnx')
add('export of a size of 0', tool(*EXPORT, '--size', '0', '0'), '--size')
add('export of an operator set there is not', tool(*EXPORT, '--opset', '99'), '--opset')
add('export with pictures that are none', tool(*EXPORT, '--pictures', '{folder}', prepare=beside('x.jpg', b'hello')), 'x.jpg')
add('export with 196 megapixels', tool(*EXPORT, '--pictures', '{folder}', prepare=beside('x.png', LARGE)), 'x.png', 'pixels')


# The rest of the command lines.

for key, words in {
    'of no picture': ('--batch', '0'),
    'of 3 pixels': ('--size', '3'),
    'of no repeat': ('--repeats', '0'),
    'on a GPU that is not there': ('--device', 'cuda:7'),
    'on a device there is not': ('--device', 'abacus'),
    'of a network there is not': ('--arch', 'resnet19'),
    'of a terabyte': ('--arch', 'resnet18', '--batch', '2000000', '--size', '224'),
}.items():
    add(f'benchmark {key}', tool('tools/benchmark.py', *words, '--out', 'out'), status=1 if 'terabyte' in key else 2)
add('drawing what there is not', tool('demo/make_mini_data.py', 'kitti', '--out', 'out'), 'kitti')
add('drawing one pixel', tool('demo/make_mini_data.py', 'coco', '--size', '1', '--out', 'out'), '--size')
add('drawing with a negative seed', tool('demo/make_mini_data.py', 'imagenet', '--seed', '-1', '--out', 'out'), '--seed')


def demo_data(content: str | None) -> Callable[[Kit, Path], None]:
    def write(kit: Kit, folder: Path) -> None:
        (folder / 'mine' / 'annotations').mkdir(parents=True)
        if content is not None:
            (folder / 'mine' / 'annotations' / FILE).write_text(content)

    return write


for key, content in {
    'no annotations': None,
    'text': 'hello',
    'a list': '[1]',
    'no names': '{"images": [{}], "categories": [{"id": 1}]}',
}.items():
    add(f'demo with {key}', tool('demo/demo.py', '--data', 'mine', prepare=demo_data(content)), FILE)
add('table for a page that is not there', tool('.dev_scripts/doc_tables.py', 'absent.md', 'a', 'absent.md'), 'absent.md')
add(
    'table for a page without its place',
    tool('.dev_scripts/count_parameters.py', '--write', 'x.md', prepare=beside('x.md', b'hello')),
    'parameters',
)
add('page of configs below a file', tool('.dev_scripts/list_configs.py', '--write', 'out/x.md', prepare=there), 'out/x.md')


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]
