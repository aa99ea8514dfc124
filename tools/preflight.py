#!/usr/bin/env python3
"""Check a config's datasets: files there, readable, and of the classes the model is built for.

tools/train.py and tools/test.py do so before every run, opening a sample of large sets. This opens every picture and label map::

    python tools/preflight.py configs/cityscapes/pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024.py

What cannot work is an error, what may be meant is a warning. Layouts not known here and remote storage are left to the toolbox.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from coco_files import read_coco
from common import UsageError, add_common_options, load_config, run
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from picture_files import is_turned, read_picture
from PIL import Image
from progress import track

from orepa_mm.registry import class_of, scope_of, type_name

SAMPLE = 200  # files of a dataset that are opened before a run
REMEDY = 'Set data_root (or the dataset settings) in the config or with --cfg-options; demo/make_mini_data.py draws small sets.'
CONVERT = "The label maps of Cityscapes have to be converted with mmseg's tools/dataset_converters/cityscapes.py. "
OTHER_CLASSES = (
    "For other classes set type='BaseSegDataset', or a dataset class of your own, metainfo=dict(classes=(...), palette=[...]), img_suffix, "
    'seg_map_suffix and num_classes of the heads; label maps count the classes from 0, with 255 for void.'
)


def check_data(cfg: Config, splits: tuple[str, ...], sample: int | None = SAMPLE) -> None:
    """Check the datasets of the dataloaders ``splits`` ('train', 'val', 'test') of ``cfg``; doubts are printed as warnings.

    Args:
        cfg: The config.
        splits: Names of the dataloaders.
        sample: How many files of a dataset to open, spread over all of it; None opens every one.

    Raises:
        UsageError: When a folder or file is missing, empty, damaged, of another format, or of other classes than the model's.
    """
    init_default_scope(scope_of(cfg) or 'mmengine')
    Image.MAX_IMAGE_PIXELS = None  # a guard that refuses large aerial pictures: here, and in the training that follows
    seen = []
    for split in splits:
        for dataset in _datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if dataset not in seen:  # most configs test on the validation set
                seen.append(dataset)
                _check_dataset(dataset, cfg, sample)
        for evaluator in _as_list(cfg.get(f'{split}_evaluator')):
            ann_file = evaluator.get('ann_file') if isinstance(evaluator, dict) else None
            if isinstance(ann_file, str) and not _is_remote(evaluator):
                _need(Path(ann_file), 'annotation file')
                if type_name(evaluator.get('type')) == 'CocoMetric':
                    read_coco(Path(ann_file))  # the metric does so after the first epoch


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _need(path: Path, kind: str, reason: str = '') -> None:
    _require(path.is_dir() if kind == 'folder' else path.is_file(), f'{path}: no such {kind}{reason}. {REMEDY}')


def _as_list(value: Any) -> list:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _datasets(dataset: Any) -> Iterator[dict]:
    """The datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if not isinstance(dataset, dict):
        return
    inner = _as_list(dataset.get('dataset')) + _as_list(dataset.get('datasets'))
    if not inner:
        yield dataset
    for item in inner:
        yield from _datasets(item)


def _is_remote(dataset: dict) -> bool:
    """Whether files come through a storage backend that only the toolbox can ask."""
    backends = [step.get('backend_args') or {} for step in (dataset, *(dataset.get('pipeline') or ())) if isinstance(step, dict)]
    addressed = '://' in f'{dataset.get("data_root")}{dataset.get("data_prefix")}{dataset.get("ann_file")}'
    return addressed or any(args.get('backend', 'local') != 'local' or 'path_mapping' in args for args in backends)


def _check_dataset(dataset: dict, cfg: Config, sample: int | None) -> None:
    known = class_of(dataset.get('type'), DATASETS, dataset.get('_scope_'))
    # A subclass that reads its files itself may have any layout.
    reader = next((c.__name__ for c in getattr(known, '__mro__', ()) if {'load_data_list', 'parse_data_info'} & vars(c).keys()), None)
    if reader not in READERS or _is_remote(dataset):
        return
    if reader == 'BaseSegDataset':
        _need(Path(dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img_path') or ''), 'folder')
    names = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(names, str):  # a file; a missing one would be taken for a list of letters
        remedy = 'metainfo=dict(classes=...) takes the names themselves, as a tuple, or a text file with one a line.'
        _require(Path(names).is_file(), f'{names}: no such file of class names: {remedy}')
        try:
            Path(names).read_text()
        except UnicodeDecodeError:
            raise UsageError(f'{names}: is no text: {remedy}') from None
    settings = {key: value for key, value in dataset.items() if key not in ('type', '_scope_')} | dict(pipeline=[], lazy_init=True)
    try:
        built = known(**settings)  # knows its paths and defaults, and has read no data
    except (AssertionError, LookupError, OSError, TypeError, ValueError) as error:
        reason = (str(error) or 'files are missing')[:300]
        remedy = OTHER_CLASSES if 'not a subset' in reason else REMEDY
        raise UsageError(f'{dataset.get("data_root")}: {known.__name__} cannot be built: {reason}. {remedy}') from None
    READERS[reader](built, reader, dataset, cfg, sample)


def _files(folder: Path, suffixes: str | tuple[str, ...], fold: Callable[[str], str] = str) -> Iterator[Path]:
    """The files the toolboxes list: below links as well, and not the hidden ones."""
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names if not name.startswith('.') and fold(name).endswith(suffixes))


def _for_some(check: Callable[[Any], None], items: list, count: int | None) -> None:
    """Run ``check`` on ``count`` of the items; decoding pictures leaves Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        some = _spread(items, count)
        done = pool.map(check, some)
        for _ in track(done, 'opening pictures', len(some)) if count is None else done:  # a sample takes a moment
            pass


def _spread(items: list, count: int | None) -> list:
    """``count`` of the items, evenly spread; all of them where that is None."""
    return items if count is None or len(items) <= count else [items[i * len(items) // count] for i in range(count)]


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


def _check_num_classes(built: BaseDataset, dataset: dict, cfg: Config, where: Path, classes: int, things: int | None = None) -> None:
    """Compare the model's class counts with the dataset's, which are ``things`` for heads that find objects.

    It is an error of a head that gets every label, or where no head is right; but a published set may be used with the head of a larger
    one, or without its background.
    """
    published = type(built).METAINFO.get('classes') and type(built).__module__.startswith(('mmdet.', 'mmseg.', 'mmpretrain.'))
    own = not published or (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    heads = [(option, count, classes if '+' in option else things or classes) for option, count in _heads(cfg.get('model'))]
    wrong = [head for head in heads if head[1] != head[2]]
    for option, count, right in wrong:
        message = f'{option}={count}, but the dataset at {where} has {right} classes: set it to {right}.'
        main = len(wrong) == len(heads) or re.search(r'\b(bbox|mask|decode)_head\b', option)
        _require(not main or not (own or count < right - 1) or (count, right) == (1, 2), message)  # one output tells two classes apart
        if main or count > 2:  # beside heads that are right, two outputs are for edges
            print(f'warning: {message[:-1]}, unless this is meant.', file=sys.stderr)


def _check_coco(built: BaseDataset, reader: str, dataset: dict, cfg: Config, sample: int | None) -> None:
    path = Path(built.ann_file)
    _need(path, 'annotation file')
    key = 'coco_url' if reader == 'LVISV1Dataset' else 'file_name'
    masks = bool((_step(dataset, 'LoadAnnotations') or {}).get('with_mask'))
    content = read_coco(path, key, annotated=not built.test_mode, panoptic=reader == 'CocoPanopticDataset', masks=masks)
    images = content['images']
    if not built.test_mode and (built.filter_cfg or {}).get('filter_empty_gt'):
        used = {annotation['image_id'] for annotation in content['annotations']}
        images = [image for image in images if image['id'] in used]
        _require(images, f'{path}: has no annotations to train on.')
    check_picture = _picture_check(dataset, cfg)

    def check(image: dict) -> None:
        name = image[key].replace('http://images.cocodataset.org/', '')
        file = Path(built.data_prefix['img'], name[-16:] if reader == 'LVISV05Dataset' and name.startswith('COCO') else name)
        _need(file, 'picture', f', though {path} lists it')
        check_picture(file)

    _for_some(check, images, sample)
    names, categories = _as_list(built.metainfo.get('classes')), [category['name'] for category in content['categories']]
    absent = [] if 'LVIS' in reader else [name for name in names if name not in categories]
    if absent:
        found = f'has no category "{absent[0]}", one of the {len(names)} classes of the config; it has {", ".join(categories[:5])}'
        remedy = "set metainfo=dict(classes=(...)) of the datasets, and num_classes of the model's heads, to the categories of the file."
        _require(len(absent) < len(names), f'{path}: {found}: {remedy}')
        print(f'warning: {path}: {found}: {remedy}', file=sys.stderr)
    things = len(built.metainfo.get('thing_classes') or ()) if reader == 'CocoPanopticDataset' else len(names)
    if names and things and not built.return_classes:  # a model that reads the classes' names has no output for each
        _check_num_classes(built, dataset, cfg, path, len(names), things)


def _check_segmentation(built: BaseDataset, reader: str, dataset: dict, cfg: Config, sample: int | None) -> None:
    names = built.metainfo.get('classes') or range(256)
    if built.metainfo.get('classes'):
        _check_num_classes(built, dataset, cfg, built.data_root, len(names))
    if built.ann_file or not built.data_prefix.get('seg_map_path'):
        return
    labelled = not dataset.get('pipeline') or _step(dataset, 'LoadAnnotations')
    images, labels = (Path(built.data_prefix[key]) for key in ('img_path', 'seg_map_path'))
    hint = CONVERT if 'labelTrainIds' in built.seg_map_suffix else ''
    for folder, suffix in ((images, built.img_suffix), (labels, built.seg_map_suffix))[: 2 if labelled else 1]:
        _require(any(_files(folder, suffix)), f'{folder}: has no files that end in {suffix}. {hint}{REMEDY}')
    classes = built.METAINFO.get('classes') or names
    highest = len(classes) - (not built.reduce_zero_label)  # with reduce_zero_label, 0 is unlabelled and the classes begin at 1
    allowed = f'the dataset has {len(classes)} classes: labels are 0 to {highest}, and {built.ignore_index} is ignored'
    check_picture = _picture_check(dataset, cfg)

    def check(picture: Path) -> None:
        size = check_picture(picture)
        if labelled:
            label = labels / (str(picture.relative_to(images)).removesuffix(built.img_suffix) + built.seg_map_suffix)
            _need(label, 'label map', f', though there is {picture}')
            opened, covered = read_picture(label, 'label map')
            _require(
                size in (None, covered),
                f'{label}: has {" x ".join(map(str, covered))} pixels, and its picture {picture} is read with '
                f'{" x ".join(map(str, size or ()))}: both must be of one size.',
            )
            values = np.asarray(opened)
            _require(values.ndim == 2, f'{label}: is a picture in colour; a label map has one channel, of class indices.')
            wrong = values[(values > highest) & (values != built.ignore_index)][:1]
            _require(not wrong.size, f'{label}: has the label {wrong.max(initial=0)}, but {allowed}. {hint}{OTHER_CLASSES}')

    _for_some(check, sorted(_files(images, built.img_suffix)), sample)


def _check_folders(built: BaseDataset, reader: str, dataset: dict, cfg: Config, sample: int | None) -> None:
    if built.ann_file:
        return
    folder, names = Path(built.img_prefix), built.CLASSES
    _need(folder, 'folder')
    classes = sorted(child for child in folder.iterdir() if child.is_dir()) if built.with_label else [folder]
    _require(classes, f'{folder}: has no class folders; the layout is <split>/<class>/<picture>, or a list in meta/<split>.txt. {REMEDY}')
    if built.with_label:
        found = f'has {len(classes)} class folders, but the dataset of the config has {len(names or ())} classes'
        remedy = "metainfo=dict(classes=(...)) of the datasets to the folders' names in alphabetic order, and num_classes of the head."
        _require(not names or len(names) == len(classes), f'{folder}: {found}: set {remedy}')
        _check_num_classes(built, dataset, cfg, folder, len(classes))
    each = None if sample is None else max(1, sample // len(classes))
    pictures = [picture for child in classes for picture in islice(_files(child, built.extensions, str.lower), each)]
    _require(pictures, f'{folder}: has no pictures ({", ".join(sorted(built.extensions))}).')
    _for_some(_picture_check(dataset, cfg), pictures, sample)


READERS = dict.fromkeys(('CocoDataset', 'CocoPanopticDataset', 'LVISV05Dataset', 'LVISV1Dataset'), _check_coco)
READERS |= dict(BaseSegDataset=_check_segmentation, CustomDataset=_check_folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_common_options(parser)
    cfg = load_config(parser.parse_args())
    check_data(cfg, ('train', 'val', 'test'), sample=None)
    print('no fault found in the datasets of the config')


if __name__ == '__main__':
    run(main)
