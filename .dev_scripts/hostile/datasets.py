"""Annotation files, pictures, label maps and folders that are broken, missing or of something else."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from .kit import Case, Kit, Make, train

FILE = 'instances_train2017.json'


def spoilt(name: str, spoil: Callable[[Path], Any], text: str = '', *options: str) -> Make:
    """A training on a copy of a dataset, in ``data``, that ``spoil`` changes."""

    def prepare(kit: Kit, folder: Path) -> None:
        shutil.copytree(kit.data(name), folder / 'data')
        spoil(folder / 'data')

    return train(text or "train_dataloader = dict(dataset=dict(data_root='{folder}/data'))", *options, scope=name, prepare=prepare)


def annotations(change: Callable[[dict], Any] | bytes) -> Make:
    """A training on a COCO set whose annotation file is another, or is changed in place."""

    def spoil(root: Path) -> None:
        path = root / 'annotations' / FILE
        if isinstance(change, bytes):
            path.write_bytes(change)
        else:
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    return spoilt('coco', spoil)


def each(kind: str, **values: Any) -> Callable[[dict], None]:
    """Sets values of the entries of a kind."""
    return lambda content: [entry.update(values) for entry in content[kind]] and None


def drop(kind: str, key: str) -> Callable[[dict], None]:
    return lambda content: content[kind][0].pop(key)


def put(kind: str, value: Any) -> Callable[[dict], None]:
    return lambda content: content.update({kind: value})


def rename(content: dict) -> None:
    for category in content['categories']:
        category['name'] += ' of another set'


KEYS = dict(
    images=('id', 'file_name', 'width', 'height'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation'),
    categories=('id', 'name'),
)
COCO = {
    'that is empty': (b'', ('not JSON',)),
    'cut short': (b'{"images": [', ('not JSON',)),
    'in another encoding': ('{"images": "\xe9"}'.encode('latin-1'), ('not JSON',)),
    'that is a list': (b'[]', ('not a COCO',)),
    'nested too deep': (b'[' * 100000, ('JSON',)),
    'with a box of three': (each('annotations', bbox=[1, 2, 3]), ('annotations[0].bbox',)),
    'with a box of words': (each('annotations', bbox=['a', 'b', 'c', 'd']), ('annotations[0].bbox',)),
    'with a box that is not finite': (each('annotations', bbox=[0, 0, float('nan'), 1]), ('annotations[0].bbox',)),
    'with a word as area': (each('annotations', area='large'), ('annotations[0].area',)),
    'with a list as image_id': (each('annotations', image_id=[1]), ('annotations[0].image_id',)),
    'with a dict as category_id': (each('annotations', category_id={}), ('annotations[0].category_id',)),
    'with a word as outline': (each('annotations', segmentation='round'), ('annotations[0].segmentation',)),
    'with an outline of words': (each('annotations', segmentation=[['a']]), ('annotations[0].segmentation',)),
    'with an outline without a size': (each('annotations', segmentation=dict(counts='x')), ('annotations[0].segmentation',)),
    'with a negative width': (each('images', width=-4), ('images[0].width',)),
    'with a number as file': (each('images', file_name=3), ('images[0].file_name',)),
    'with pictures elsewhere': (each('images', file_name='../../nothing.jpg'), ('no such picture', 'nothing.jpg')),
    'with a number as name': (each('categories', name=3), ('categories[0].name',)),
    'with equal image ids': (each('images', id=1), ('ids of its images',)),
    'with equal annotation ids': (each('annotations', id=1), ('ids of its annotations',)),
    'with equal category ids': (each('categories', id=1), ('ids of its categories',)),
    'with equal names': (each('categories', name='cat'), ('names of its categories',)),
    'without pictures': (put('images', []), ('images',)),
    'without categories': (put('categories', []), ('categories',)),
    'without annotations at all': (put('annotations', []), ('no annotations',)),
    'of pictures it does not list': (each('annotations', image_id=99), ('image_id', '99')),
    'of categories it does not list': (each('annotations', category_id=99), ('category_id', '99')),
    'of other categories': (rename, ('no category', 'metainfo')),
}


def broken(pattern: str, content: bytes | None = None, how: str = '') -> Callable[[Path], None]:
    """Takes the first file like a pattern away, and puts there: bytes, half of it, a folder or a link to itself."""

    def spoil(root: Path) -> None:
        path = sorted(root.glob(pattern))[0]
        old = path.read_bytes()
        path.unlink()
        if content is not None or how == 'half':
            path.write_bytes(old[: len(old) // 2] if content is None else content)
        elif how == 'folder':
            path.mkdir()
        elif how == 'loop':
            path.symlink_to(path)

    return spoil


def picture(width: int, height: int, mode: str = 'RGB', value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), value).save(buffer, 'PNG')
    return buffer.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and has a thousand bytes of that."""
    parts = (b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0), b'IDAT' + zlib.compress(bytes(1000)))
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(part) - 4) + part + struct.pack('>I', zlib.crc32(part)) for part in parts)


JPG, LISTED, LABELS = 'train/circle/*.jpg', 'train2017/*.jpg', 'gtFine/train/mini/*_labelTrainIds.png'
HUGE = header(40000, 40000)
SPOILT = {
    'picture cut short': ('imagenet', broken(JPG, how='half'), ('.jpg', 'cannot be read as a picture')),
    'picture that is text': ('imagenet', broken(JPG, b'hello'), ('.jpg', 'cannot be read as a picture')),
    'picture that is empty': ('imagenet', broken(JPG, b''), ('.jpg', 'cannot be read as a picture')),
    'picture that is a web page': ('coco', broken(LISTED, b'<html>'), ('.jpg', 'cannot be read as a picture')),
    'picture that links to itself': ('imagenet', broken(JPG, how='loop'), ('.jpg',)),
    'picture of 1.6 billion pixels': ('imagenet', broken(JPG, HUGE), ('.jpg', '40000 x 40000', 'tiles')),
    'picture that is listed and missing': ('coco', broken(LISTED), ('.jpg', 'no such picture')),
    'picture that is listed and a folder': ('coco', broken(LISTED, how='folder'), ('.jpg', 'no such picture')),
    'label map of another size': ('cityscapes', broken(LABELS, picture(30, 20, 'L')), ('labelTrainIds.png', '30 x 20', 'one size')),
    'label map in colour': ('cityscapes', broken(LABELS, picture(128, 64)), ('in colour',)),
    'label map of other classes': ('cityscapes', broken(LABELS, picture(128, 64, 'L', 77)), ('label 77',)),
    'label map that is missing': ('cityscapes', broken(LABELS), ('no such label map',)),
    'label map that is text': ('cityscapes', broken(LABELS, b'hello'), ('cannot be read as a label map',)),
    'label map of 1.6 billion pixels': ('cityscapes', broken(LABELS, HUGE), ('40000 x 40000',)),
    'data in no class folders': (
        'imagenet',
        lambda root: [shutil.rmtree(path) for path in (root / 'train').iterdir()],
        ('train', 'no class folders'),
    ),
}
ENDLESS = """
d = dict(type='RepeatDataset', times=2)
for _ in range(3000):
    d = dict(type='RepeatDataset', times=2, dataset=d)
train_dataloader = dict(dataset=dict(_delete_=True, **d))
"""
NAMED = {
    'of a folder that is not there': ('imagenet', "data_root='absent'", ('absent', 'data_root')),
    'of a file': ('imagenet', "data_root='{kit.onnx}'", ('classifier.onnx',)),
    'of a server that refuses': ('coco', "ann_file='http://127.0.0.1:9/a.json'", ('config.py', 'refused')),
    'of a store without its package': ('coco', "data_root='s3://bucket', ann_file='a.json'", ('config.py', 'petrel')),
    'of a list that is not there': ('imagenet', "ann_file='absent.txt'", ('absent.txt',)),
    'of a list that is none': ('imagenet', "ann_file='{folder}/config.py', data_prefix='train'", ('config.py',)),
    'with classes in a file that is not there': ('imagenet', "metainfo=dict(classes='absent.txt')", ('absent.txt',)),
    'with classes in binary': ('imagenet', "metainfo=dict(classes='{kit.onnx}')", ('classifier.onnx',)),
    'of label maps in a list that is not there': ('cityscapes', "ann_file='absent.txt'", ('absent.txt',)),
    'in a wrapper': (
        'coco',
        "_delete_=True, type='RepeatDataset', times=2, dataset=dict(type='CocoDataset', ann_file='absent.json')",
        ('absent.json',),
    ),
}
WORKERS = "train_dataloader = dict(num_workers=2, dataset=dict(data_root='{folder}/data', indices=None))"
UNCHECKED = "train_dataloader = dict(dataset=dict(data_root='{folder}/data', indices=None))"


def cases() -> Iterator[Case]:
    for kind, keys in KEYS.items():
        yield Case(f'coco without {kind}', annotations(lambda content, kind=kind: content.pop(kind)), (FILE, kind))
        yield Case(f'coco with a number as {kind}', annotations(put(kind, 3)), (FILE, kind))
        yield Case(f'coco with numbers as {kind}', annotations(put(kind, [3, 4])), (FILE, f'{kind}[0]'))
        for key in keys:
            yield Case(f'coco {kind} without {key}', annotations(drop(kind, key)), (FILE, f'{kind}[0]', key))
    for name, (change, words) in COCO.items():
        yield Case(f'coco file {name}', annotations(change), (FILE, *words))
    for name, (scope, spoil, words) in SPOILT.items():
        yield Case(name, spoilt(scope, spoil), words)
    for name, (scope, settings, words) in NAMED.items():
        yield Case(f'data {name}', train(f'train_dataloader = dict(dataset=dict({settings}))', scope=scope), words)
    yield Case('data in wrappers without end', train(ENDLESS, scope='coco'), ('config.py',))
    evaluator = "val_evaluator = dict(ann_file='{path}')"
    yield Case('data of an evaluator, not there', train(evaluator.format(path='absent.json'), scope='coco'), ('absent.json',))
    make = spoilt('coco', lambda root: (root / 'x.json').write_text('{"images": []}'), evaluator.format(path='{folder}/data/x.json'))
    yield Case('data of an evaluator, broken', make, ('x.json', 'not a COCO annotation file'))
    # What the check before the run does not see, because it is left out or the file goes later.
    text = broken('train/*/*.jpg', b'hello')
    yield Case('picture that is text, unchecked', spoilt('imagenet', text, UNCHECKED, '--no-check-data'), ('.jpg', 'traceback in'))
    make = spoilt('imagenet', text, WORKERS, '--no-check-data')
    yield Case('picture that is text, in a worker', make, ('config.py', 'traceback in'), status=1)
    make = spoilt('coco', broken(LISTED), WORKERS, '--no-check-data')
    yield Case('picture that is missing, in a worker', make, ('.jpg', 'No such file'))
