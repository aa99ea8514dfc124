#!/usr/bin/env python3
"""Check a config's datasets: files there and readable, annotations of these files, classes numbered alike wherever they are numbered.

tools/train.py and tools/test.py do so before every run, opening a sample of large sets. This opens every picture and label map::

    python tools/preflight.py configs/cityscapes/pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024.py

and says what it counted. What cannot work, or would mean something else, is an error; what may be meant is a warning. Layouts not known
here and remote storage are left to the toolbox.
"""

import argparse
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from coco_files import read_coco
from common import UsageError, add_common_options, load_config, run
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, METRICS, Registry, init_default_scope
from PIL import ExifTags, Image, UnidentifiedImageError
from progress import track

from orepa_mm.checkpoints.reading import read_checkpoint
from orepa_mm.registry import class_of, scope_of, type_name

SAMPLE = 200  # files of a dataset that are opened before a run
REMEDY = 'Set data_root (or the dataset settings) in the config or with --cfg-options; demo/make_mini_data.py draws small sets.'
CONVERT = "The label maps of Cityscapes have to be converted with mmseg's tools/dataset_converters/cityscapes.py. "
OTHER_CLASSES = (
    "For other classes set type='BaseSegDataset', or a dataset class of your own, metainfo=dict(classes=(...), palette=[...]), img_suffix, "
    'seg_map_suffix and num_classes of the heads; label maps count the classes from 0, with 255 for void.'
)
ORDER = (
    'COCO files number classes in the order of their categories, folders in alphabetic order, metainfo=dict(classes=(...)) in the order of '
    'its names. Write them in one order, all classes everywhere.'
)


@dataclass
class Contents:
    """What a dataset holds: how much, the config's classes, their numbers where files name them, COCO images (name, width, height)."""

    where: Path
    count: str
    names: Sequence[str] = ()
    labels: dict[str, int] = field(default_factory=dict)
    images: dict[Any, tuple] = field(default_factory=dict)


def check_data(
    cfg: Config, splits: tuple[str, ...], sample: int | None = SAMPLE, others: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Check the datasets of the dataloaders ``splits`` ('train', 'val', 'test') of ``cfg``; doubts are printed as warnings.

    Args:
        cfg: The config.
        splits: Names of the dataloaders.
        sample: How many files of a dataset to open, spread over all of it; None opens every one.
        others: The classes of what is tested on the datasets, in its order, by how it is called.

    Returns:
        What each dataset holds, in words.

    Raises:
        UsageError: When a folder or file is missing, empty, damaged, of another format, or means something else than the config.
    """
    init_default_scope(scope_of(cfg) or 'mmengine')
    Image.MAX_IMAGE_PIXELS = None  # a guard that refuses large aerial pictures: here, and in the training that follows
    found: dict[str, Contents | None] = {}
    labels: dict[str, dict[str, int]] = {}
    names = {}
    for split in splits:
        datasets = list(datasets_in((cfg.get(f'{split}_dataloader') or {}).get('dataset')))
        for i, dataset in enumerate(datasets):
            if str(dataset) not in found:  # most configs test on the validation set
                found[str(dataset)] = _check_dataset(dataset, cfg, sample)
            contents = found[str(dataset)]
            if contents is not None:
                labels[str(contents.where)] = contents.labels
                names[f'the classes of {split}_dataloader' + f' (dataset {i})' * (len(datasets) > 1)] = contents.names
        for evaluator in _as_list(cfg.get(f'{split}_evaluator')):
            labels |= _check_evaluator(evaluator, found[str(datasets[0])] if len(datasets) == 1 else None)
    labels |= {owner: {name: label for label, name in enumerate(listed)} for owner, listed in (*names.items(), *(others or {}).items())}
    for (a, first), (b, second) in combinations(labels.items(), 2):
        name = next((name for name in first if second.get(name, first[name]) != first[name]), '')
        _require(not name, f'"{name}" is class {first.get(name)} in {a}, and class {second.get(name)} in {b}. {ORDER}')
    return [f'{contents.where}: {contents.count}' for contents in found.values() if contents is not None]


def classes_of(checkpoint: str | Path) -> dict[str, Sequence[str]]:
    """The classes a checkpoint says it was trained for, by its name: ``others`` of :func:`check_data`."""
    meta = (read_checkpoint(checkpoint).get('meta') if Path(checkpoint).is_file() else None) or {}
    classes = {key.lower(): value for key, value in (meta.get('dataset_meta') or {}).items()}.get('classes')
    return {str(checkpoint): [name for name in classes or () if isinstance(name, str)]}  # mmpose's are whole categories


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _warn(message: str) -> None:
    print(f'warning: {message}', file=sys.stderr)


def _need(path: Path, kind: str, reason: str = '') -> None:
    _require(path.is_dir() if kind == 'folder' else path.is_file(), f'{path}: no such {kind}{reason}. {REMEDY}')


def _as_list(value: Any) -> list:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _count(number: int, what: str, of: int = 0) -> str:
    plural = '' if max(number, of) == 1 else 'es' if what[-1] in 'sx' else 's'
    return f'{number}{f" of {of}" if number < of else ""} {what}{plural}'


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(f'"{name}"' for name in names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def datasets_in(dataset: Any) -> Iterator[dict]:
    """The datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if not isinstance(dataset, dict):
        return
    inner = _as_list(dataset.get('dataset')) + _as_list(dataset.get('datasets'))
    if not inner:
        yield dataset
    for item in inner:
        yield from datasets_in(item)


def _is_remote(dataset: dict) -> bool:
    """Whether files come through a storage backend that only the toolbox can ask."""
    backends = [step.get('backend_args') or {} for step in (dataset, *(dataset.get('pipeline') or ())) if isinstance(step, dict)]
    addressed = '://' in f'{dataset.get("data_root")}{dataset.get("data_prefix")}{dataset.get("ann_file")}'
    return addressed or any(args.get('backend', 'local') != 'local' or 'path_mapping' in args for args in backends)


def _class_of(settings: dict, registry: Registry, *methods: str) -> tuple[Any, str]:
    """The class a part of a config is built of, and the name of the first of its bases that has one of the methods."""
    kind = class_of(settings.get('type'), registry, settings.get('_scope_'))
    return kind, next((c.__name__ for c in getattr(kind, '__mro__', ()) if vars(c).keys() & {*methods}), '')


def _check_evaluator(evaluator: dict, tested: Contents | None) -> dict[str, dict[str, int]]:
    """Compare the annotation file of mmdet's metric with the one dataset it judges; the labels it gives the classes, by its path."""
    ann_file = evaluator.get('ann_file') if isinstance(evaluator, dict) else None
    if not isinstance(ann_file, str) or _is_remote(evaluator):
        return {}
    path = Path(ann_file)
    _need(path, 'annotation file')
    if _class_of(evaluator, METRICS, 'compute_metrics')[1] != 'CocoMetric':
        return {}
    content = read_coco(path, annotated=not evaluator.get('format_only'))  # the metric does so after the first epoch
    if tested is None or not tested.images:
        return {}
    images, labels = _images(content), _labels(content, tested.names)
    key = next((key for key, image in tested.images.items() if images.get(key) != image), None)
    name, width, height = images.get(key, ('missing', 0, 0))
    _require(
        key is None,
        f'{path}: is not of the images that are tested: image {key!r} is {name} ({width} x {height}) here, and in {tested.where} '
        '{} ({} x {}). Set ann_file of the evaluator to that of the dataset.'.format(*tested.images.get(key, '???')),
    )
    if len(images) > len(tested.images):
        _warn(f'{path}: {len(images) - len(tested.images)} of its {len(images)} images are not tested, and count as missed.')
    absent = [name for name in tested.names if name not in labels]
    remedy = 'Its prediction would end the evaluation with an IndexError; write all classes of the config into the categories of the file.'
    _require(not absent, f'{path}: has no category {_listed(absent)}, of the classes of the config. {remedy}')
    return {ann_file: labels}


def _images(content: dict) -> dict[Any, tuple]:
    return {image['id']: (Path(image['file_name']).name, image['width'], image['height']) for image in content['images']}


def _labels(content: dict, names: Sequence[str]) -> dict[str, int]:
    """The numbers of the classes: those that the config names, in the order of the file."""
    listed = (category['name'] for category in content['categories'])
    return {name: label for label, name in enumerate(name for name in listed if name in names)}


def _check_dataset(dataset: dict, cfg: Config, sample: int | None) -> Contents | None:
    # A subclass that reads its files itself may have any layout.
    known, reader = _class_of(dataset, DATASETS, 'load_data_list', 'parse_data_info')
    if reader not in READERS or _is_remote(dataset):
        return None
    if reader == 'BaseSegDataset':
        _need(Path(dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img_path') or ''), 'folder')
    names = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(names, str):  # a file; a missing one would be taken for a list of letters
        remedy = 'metainfo=dict(classes=...) takes the names themselves, as a tuple, or a text file with one a line.'
        _require(Path(names).is_file(), f'{names}: no such file of class names: {remedy}')
    settings = {key: value for key, value in dataset.items() if key not in ('type', '_scope_')} | dict(pipeline=[], lazy_init=True)
    try:
        built = known(**settings)  # knows its paths and defaults, and has read no data
    except (AssertionError, LookupError, OSError, TypeError, ValueError) as error:
        reason = (str(error) or 'files are missing')[:300]
        remedy = OTHER_CLASSES if 'not a subset' in reason else REMEDY
        raise UsageError(f'{dataset.get("data_root")}: {known.__name__} cannot be built: {reason}. {remedy}') from None
    return READERS[reader](built, reader, dataset, cfg, sample)


def _files(folder: Path, suffixes: str | tuple[str, ...], fold: Callable[[str], str] = str) -> Iterator[Path]:
    """The files the toolboxes list: below links as well, and not the hidden ones."""
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names if not name.startswith('.') and fold(name).endswith(suffixes))


def _for_some(check: Callable[[Any], Any], items: list, count: int | None) -> list:
    """What ``check`` returns for ``count`` of the items, evenly spread, or for all; decoding pictures leaves Python's lock."""
    some = items if count is None or len(items) <= count else [items[i * len(items) // count] for i in range(count)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        done = pool.map(check, some)
        return list(track(done, 'opening pictures', len(some)) if count is None else done)  # a sample takes a moment


def read_picture(path: Path, kind: str, scaled: bool = False) -> tuple[Image.Image | None, tuple[int, int] | None]:
    """The decoded picture, called ``kind`` in messages, with its width and height; None where only cv2 knows the format.

    cv2, which the toolboxes decode with, fills the rest of a file that is cut short with grey and says nothing. ``scaled``: a smaller
    picture will do, if that is faster.
    """
    most = int(os.environ.get('OPENCV_IO_MAX_IMAGE_PIXELS', 2**30))
    try:
        with Image.open(path) as picture:
            size = picture.size
            if size[0] * size[1] <= most:
                if scaled:
                    picture.draft(None, (1, 1))  # a JPEG is then read to its end, but not computed in full
                picture.load()
                return picture, size
    except (OSError, SyntaxError, ValueError) as error:
        if scaled and isinstance(error, UnidentifiedImageError) and cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None:
            return None, None
        raise UsageError(f'{path}: cannot be read as a {kind} ({error}); copy it again, or take it out of the dataset.') from None
    remedy = 'cut it into tiles, or set OPENCV_IO_MAX_IMAGE_PIXELS in the environment.'
    raise UsageError(f'{path}: has {size[0]} x {size[1]} pixels, and OpenCV opens {most / 1e6:.0f} millions: {remedy}')


def is_turned(picture: Image.Image) -> bool:
    """Whether a photograph says that it was taken upright and its width and height are to be exchanged, as cv2 does."""
    if picture.format not in ('JPEG', 'MPO'):
        return False
    with suppress(SyntaxError, ValueError, struct.error):  # broken metadata turn nothing
        return picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
    return False


def _step(dataset: dict, name: str) -> dict | None:
    """The step of the pipeline whose type ends in ``name``."""
    steps = [step for step in dataset.get('pipeline') or () if isinstance(step, dict)]
    return next((step for step in steps if type_name(step.get('type')).endswith(name)), None)


def _picture_check(dataset: dict, cfg: Config) -> Callable[[Path], tuple[int, int] | None]:
    """A function that raises for a picture the pipeline cannot read, or reads with another number of channels than the model takes.

    It returns the width and height of the picture as the pipeline reads it, where these are known.
    """
    load = _step(dataset, 'LoadImageFromFile')
    if load is None or load.get('imdecode_backend') == 'tifffile':
        return lambda path: None
    colour = load.get('color_type', 'color')
    mean = ((cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}).get('mean')
    channels = len(mean) if isinstance(mean, list | tuple) and len(mean) > 1 else None  # one value serves any number of channels

    def check(path: Path) -> tuple[int, int] | None:
        picture, size = read_picture(path, 'picture', scaled=True)
        if picture is None:
            return None
        found = 3 if colour.startswith('color') or picture.mode == 'P' else 1 if 'grayscale' in colour else len(picture.getbands())
        loaded = f'{found} channel{"s" * (found > 1)} (color_type={colour!r})'
        remedy = f"set color_type='{'color' if channels == 3 else 'grayscale'}' of LoadImageFromFile, which converts, in all pipelines."
        _require(channels in (None, found), f'{path}: is loaded with {loaded} and the model takes {channels}: {remedy}')
        return size[::-1] if colour in ('color', 'grayscale') and is_turned(picture) else size

    return check


def _heads(node: Any, path: str = 'model') -> Iterator[tuple[str, int]]:
    """The class counts in a model's config with their paths, without those of proposals, extra label maps and class-agnostic masks."""
    if isinstance(node, dict):
        if {'num_things_classes', 'num_stuff_classes'} <= node.keys():
            yield f'{path}.num_things_classes + num_stuff_classes', node['num_things_classes'] + node['num_stuff_classes']
        if isinstance(node.get('num_classes'), int) and not node.get('class_agnostic'):
            yield f'{path}.num_classes', node['num_classes']
        for key, value in node.items():
            if key not in ('rpn_head', 'semantic_head', 'data_preprocessor', 'train_cfg', 'test_cfg'):
                yield from _heads(value, f'{path}.{key}')
    for i, value in enumerate(node if isinstance(node, list | tuple) else ()):
        yield from _heads(value, f'{path}[{i}]')


def _warn_of_heads(cfg: Config, where: Path, *counts: int) -> None:
    """Say which class counts of the model are not the dataset's; what is right for a head, only its class knows."""
    heads = ((option, count) for option, count in _heads(cfg.get('model')) if 'auxiliary' not in option or count > 2)  # 2 are for edges
    others = [f'{option}={count}' for option, count in heads if count not in counts]
    if others:
        _warn(f'the dataset at {where} has {_count(counts[0], "class")}, and the config says {", ".join(others)}: right if that is meant.')


def _check_coco(built: BaseDataset, reader: str, dataset: dict, cfg: Config, sample: int | None) -> Contents:
    path = Path(built.ann_file)
    _need(path, 'annotation file')
    key = 'coco_url' if reader == 'LVISV1Dataset' else 'file_name'
    masks = bool((_step(dataset, 'LoadAnnotations') or {}).get('with_mask'))
    content = read_coco(path, key, annotated=not built.test_mode, panoptic=reader == 'CocoPanopticDataset', masks=masks)
    names, lvis = _as_list(built.metainfo.get('classes')), 'LVIS' in reader
    categories = {item['id']: item['name'] for item in content['categories'] if lvis or item['name'] in names}
    absent = [] if lvis else [name for name in names if name not in categories.values()]
    if absent:
        listed = _listed(item['name'] for item in content['categories'])
        found = f'{path}: has no category {_listed(absent)}, of the {len(names)} classes of the config; it has {listed}'
        remedy = "set metainfo=dict(classes=(...)) of the datasets, and num_classes of the model's heads, to the categories of the file."
        _require(len(absent) < len(names), f'{found}: {remedy}')
        _warn(f'{found}: {remedy}')
    objects = [
        (annotation['image_id'], categories[item['category_id']])
        for annotation in content.get('annotations', ())
        for item in annotation.get('segments_info', [annotation])
        if item['category_id'] in categories and not item.get('ignore')
    ]
    images = content['images']
    if not built.test_mode and built.filter_cfg:
        used, least = {image for image, _ in objects}, built.filter_cfg.get('min_size', 0)
        every = not built.filter_cfg.get('filter_empty_gt')
        images = [image for image in images if (every or image['id'] in used) and min(image['width'], image['height']) >= least]
        _require(images, f'{path}: has no annotations to train on.')
    check_picture = _picture_check(dataset, cfg)

    def check(image: dict) -> None:
        file = Path(built.data_prefix['img'], image[key].replace('http://images.cocodataset.org/', ''))
        _need(file, 'picture', f', though {path} lists it')
        size, said = check_picture(file), (image['width'], image['height'])
        turned = " The picture says that it is to be turned; color_type='color_ignore_orientation' would not." * (said[::-1] == size)
        _require(
            size in (None, said),
            f'{file}: is read with {size} pixels of width and height, and {path} says {said}: its boxes and masks are of another picture; '
            f'resize the pictures and the file together.{turned}',
        )

    _for_some(check, images, sample)
    known = {image['id'] for image in images}
    objects = [name for image, name in objects if image in known]
    things = len(built.metainfo.get('thing_classes') or ()) if reader == 'CocoPanopticDataset' else len(names)
    text = f'{_count(len(images), "image")}, {_count(len(objects), "box")} of {_count(len(set(objects)), "class", len(names))}'
    if built.return_classes:  # a model that reads the classes' names has no number for each
        return Contents(path, text)
    if names:
        _warn_of_heads(cfg, path, len(names), things)
    if lvis:
        return Contents(path, text, names)
    tested = _images(content) if reader == 'CocoDataset' else {}  # metrics of panoptic sets have files of things alone beside
    return Contents(path, text, names, _labels(content, names), tested)


def _check_segmentation(built: BaseDataset, reader: str, dataset: dict, cfg: Config, sample: int | None) -> Contents:
    names = built.metainfo.get('classes') or ()
    if names:
        _warn_of_heads(cfg, built.data_root, len(names))
    if built.ann_file or not built.data_prefix.get('seg_map_path'):
        return Contents(Path(built.data_root or ''), 'listed in a file', names)
    labelled = not dataset.get('pipeline') or _step(dataset, 'LoadAnnotations')
    images, labels = (Path(built.data_prefix[key]) for key in ('img_path', 'seg_map_path'))
    hint = CONVERT if 'labelTrainIds' in built.seg_map_suffix else ''
    for folder, suffix in ((images, built.img_suffix), (labels, built.seg_map_suffix))[: 2 if labelled else 1]:
        _require(any(_files(folder, suffix)), f'{folder}: has no files that end in {suffix}. {hint}{REMEDY}')
    classes = built.METAINFO.get('classes') or names or range(256)
    first = int(built.reduce_zero_label)  # then 0 is unlabelled and the classes begin at 1
    highest = len(classes) - 1 + first
    allowed = f'the dataset has {len(classes)} classes: labels are 0 to {highest}, and {built.ignore_index} is ignored'
    check_picture = _picture_check(dataset, cfg)

    def check(picture: Path) -> np.ndarray | None:
        """The number of pixels of each label, the ignored ones last."""
        size = check_picture(picture)
        if not labelled:
            return None
        label = labels / (str(picture.relative_to(images)).removesuffix(built.img_suffix) + built.seg_map_suffix)
        _need(label, 'label map', f', though there is {picture}')
        opened, covered = read_picture(label, 'label map')
        _require(
            size in (None, covered),
            f'{label}: has {" x ".join(map(str, covered))} pixels, and its picture {picture} is read with '
            f'{" x ".join(map(str, size or ()))}: both must be of one size.',
        )
        values = np.asarray(opened).astype(np.int64)
        _require(values.ndim == 2, f'{label}: is a picture in colour; a label map has one channel, of class indices.')
        ignored = values == built.ignore_index
        wrong = values[((values > highest) | (values < 0)) & ~ignored][:1]
        _require(not wrong.size, f'{label}: has the label {wrong.max(initial=0)}, but {allowed}. {hint}{OTHER_CLASSES}')
        return np.append(np.bincount(values[~ignored], minlength=highest + 1), ignored.sum())

    pictures = sorted(_files(images, built.img_suffix))
    counts = _for_some(check, pictures, sample)
    text = _count(len(pictures), 'image')
    if labelled and names:
        *pixels, ignored = np.sum(counts, 0)[first:]
        seen = [name for name, number in zip(classes, pixels, strict=True) if number]
        _require(
            len(classes) < 2 or len(seen) > 1 or not ignored,
            f'{labels}: the {len(counts)} label maps opened hold {_listed(seen) or "no class"} and {built.ignore_index}, which is ignored: '
            f'masks of 0 and 255 have to be written anew with 0 and 1. {hint}{OTHER_CLASSES}',
        )
        absent = [name for name in names if name not in seen]
        if absent:
            _warn(f'{labels}: none of the {len(counts)} label maps opened has {_listed(absent)}.')
        text += f', labels of {_count(len(names) - len(absent), "class", len(names))}'
    return Contents(images, text, names)


def _check_folders(built: BaseDataset, reader: str, dataset: dict, cfg: Config, sample: int | None) -> Contents:
    folder, names = Path(built.img_prefix), built.CLASSES or ()
    if built.ann_file:
        return Contents(Path(built.ann_file), 'listed in a file', names)
    _need(folder, 'folder')
    classes = sorted(child for child in folder.iterdir() if child.is_dir()) if built.with_label else [folder]
    _require(classes, f'{folder}: has no class folders; the layout is <split>/<class>/<picture>, or a list in meta/<split>.txt. {REMEDY}')
    if built.with_label:
        found = f'has {len(classes)} class folders, but the dataset of the config has {len(names)} classes'
        remedy = "metainfo=dict(classes=(...)) of the datasets to the folders' names in alphabetic order, and num_classes of the head."
        _require(not names or len(names) == len(classes), f'{folder}: {found}: set {remedy}')
        _warn_of_heads(cfg, folder, len(classes))
    each = None if sample is None else max(1, sample // len(classes))
    pictures = [picture for child in classes for picture in islice(_files(child, built.extensions, str.lower), each)]
    _require(pictures, f'{folder}: has no pictures ({", ".join(sorted(built.extensions))}).')
    _for_some(_picture_check(dataset, cfg), pictures, sample)
    if not built.with_label:
        return Contents(folder, _count(len(pictures), 'image'))
    labels = {child.name: label for label, child in enumerate(classes)}
    return Contents(folder, f'{_count(len(pictures), "image")} of {_count(len(classes), "class")}', names, labels)


READERS = dict.fromkeys(('CocoDataset', 'CocoPanopticDataset', 'LVISV1Dataset'), _check_coco)
READERS |= dict(BaseSegDataset=_check_segmentation, CustomDataset=_check_folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_common_options(parser)
    cfg = load_config(parser.parse_args())
    print(*check_data(cfg, ('train', 'val', 'test'), sample=None), 'no fault found in the datasets of the config', sep='\n')


if __name__ == '__main__':
    run(main)
