#!/usr/bin/env python3
"""Check a config's datasets: files there, readable, and of the classes the model is built for.

tools/train.py and tools/test.py do so before every run, opening a sample of large sets. This opens every picture and label map::

    python tools/preflight.py configs/cityscapes/pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024.py
"""

import argparse
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import UsageError, add_common_options, load_config, run
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

PICTURES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.webp', '.tif', '.tiff')
SAMPLE = 200  # files of a dataset that are opened before a run
CONVERT = "The label maps of Cityscapes have to be converted with mmseg's tools/dataset_converters/cityscapes.py."
REMEDY = 'Set data_root (or the dataset settings) in the config or with --cfg-options; demo/make_mini_data.py draws small sets.'


def check_data(cfg: Config, splits: tuple[str, ...], sample: int | None = SAMPLE) -> None:
    """Check the datasets of the dataloaders ``splits`` ('train', 'val', 'test') of ``cfg``.

    Args:
        cfg: The config.
        splits: Names of the dataloaders.
        sample: How many files of a dataset to open, spread over all of it; None opens every one.

    Raises:
        UsageError: When a folder or file is missing, empty, damaged, of another format, or of other classes than the model's.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    parsed, seen = set(), []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in _datasets(loader.get('dataset')) if loader else ():
            if dataset in seen:  # most configs test on the validation set
                continue
            seen.append(dataset)
            _check_dataset(dataset, cfg, sample)
            parsed.add(_path(dataset, dataset.get('ann_file') or ''))
    for split in splits:
        for evaluator in _as_list(cfg.get(f'{split}_evaluator')):
            if isinstance(evaluator, dict) and str(evaluator.get('ann_file', '')).endswith('.json'):
                path = Path(evaluator['ann_file'])
                if path not in parsed:
                    _read_coco(path)


def _dataset_class(dataset: dict) -> type | None:
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']


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


def _path(dataset: dict, path: str) -> Path:
    return Path(dataset.get('data_root') or '') / path


def _check_dataset(dataset: dict, cfg: Config, sample: int | None) -> None:
    kinds = {cls.__name__ for cls in getattr(_dataset_class(dataset), '__mro__', ())}
    prefix, ann_file = dataset.get('data_prefix') or '', dataset.get('ann_file') or ''
    if '://' in f'{dataset.get("data_root")}{ann_file}':
        return
    if 'CocoDataset' in kinds:
        categories = _check_coco(dataset, _path(dataset, ann_file), prefix or {}, cfg, sample)
        _check_classes(dataset, cfg, _path(dataset, ann_file), categories)
    elif 'BaseSegDataset' in kinds and not ann_file and 'seg_map_path' in prefix:
        _check_segmentation(dataset, prefix, cfg, sample)
    elif _dataset_class(dataset).__name__ in ('CustomDataset', 'ImageNet') and not ann_file:
        folder = prefix.get('img_path', '') if isinstance(prefix, dict) else prefix
        root = _path(dataset, folder or dataset.get('split', ''))
        if not (dataset.get('split') and _path(dataset, f'meta/{dataset["split"]}.txt').is_file()):  # the annotation list of ImageNet
            _check_folders(dataset, root, cfg, sample)


def _read_coco(path: Path) -> dict:
    if not path.is_file():
        raise UsageError(f'{path}: no such annotation file. {REMEDY}')
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f'{path}: not JSON ({error}); a COCO annotation file is needed.') from None
    missing = [key for key in ('images', 'annotations', 'categories') if not isinstance(content, dict) or key not in content]
    if missing:
        raise UsageError(f'{path}: not a COCO annotation file, it has no "{missing[0]}".')
    if not content['images']:
        raise UsageError(f'{path}: lists no images.')
    return content


def _spread(items: list, count: int | None) -> list:
    """``count`` of the items, evenly spread; all of them where that is None."""
    return items if count is None or len(items) <= count else [items[i * len(items) // count] for i in range(count)]


def _for_all(check: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Run ``check`` on every item; decoding pictures leaves Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(check, items):
            pass


def _open(path: Path, kind: str, scaled: bool = False) -> Any:
    """The decoded picture.

    cv2, which the toolboxes decode with, fills the rest of a file that is cut short with grey and says nothing.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if scaled:
                picture.draft(None, (1, 1))  # a JPEG is then read to its end, but not computed in full
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f'{path}: cannot be read as a {kind} ({error}); copy it again, or take it out of the dataset.') from None


def _picture_check(dataset: dict, cfg: Config) -> Callable[[Path], None]:
    """A function that raises for a picture the pipeline cannot read, or reads with another number of channels than the model takes."""
    load = next((step for step in dataset.get('pipeline') or () if str(step.get('type')).endswith('LoadImageFromFile')), None)
    colour = (load or {}).get('color_type', 'color')
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    channels = len(preprocessor.get('mean') or (0, 0, 0))

    def check(path: Path) -> None:
        picture = _open(path, 'picture', scaled=True)
        if load is None:
            return
        found = {'color': 3, 'grayscale': 1}.get(colour, len(picture.getbands()))
        if found != channels:
            raise UsageError(
                f'{path}: is loaded with {found} channel{"s" * (found > 1)} (color_type={colour!r}) and the model takes {channels}: set '
                f"color_type='{'color' if channels == 3 else 'grayscale'}' of LoadImageFromFile, which converts, in all pipelines."
            )

    return check


def _check_coco(dataset: dict, path: Path, prefix: dict, cfg: Config, sample: int | None) -> list[str]:
    content = _read_coco(path)
    folder = _path(dataset, prefix.get('img', ''))
    check = _picture_check(dataset, cfg)

    def check_file(image: dict) -> None:
        file = folder / image['file_name']
        if not file.is_file():
            raise UsageError(f'{file}: no such picture, though {path} lists it. {REMEDY}')
        check(file)

    _for_all(check_file, _spread(content['images'], sample))
    if not dataset.get('test_mode') and not content['annotations']:
        raise UsageError(f'{path}: has no annotations to train on.')
    return [category['name'] for category in content['categories']]


def _class_names(dataset: dict) -> list[str] | None:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        classes = getattr(_dataset_class(dataset), 'METAINFO', {}).get('classes')
    return [classes] if isinstance(classes, str) else list(classes) if classes else None


def _check_classes(dataset: dict, cfg: Config, path: Path, categories: list[str]) -> None:
    names = _class_names(dataset)
    if names is None:
        return
    absent = [name for name in names if name not in categories]
    if absent:
        raise UsageError(
            f'{path}: has no category "{absent[0]}", one of the {len(names)} classes of the config; it has {", ".join(categories[:5])}. '
            "Set metainfo=dict(classes=(...)) of the datasets, and num_classes of the model's heads, to the categories of the file."
        )
    _check_num_classes(cfg, len(names), path)


def _num_classes(node: Any, path: str = 'model') -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` in a model's config with its path; the proposal head's is its own affair."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == 'num_classes' and isinstance(value, int):
                yield f'{path}.{key}', value
            elif key not in ('rpn_head', 'data_preprocessor', 'train_cfg', 'test_cfg'):
                yield from _num_classes(value, f'{path}.{key}')
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _num_classes(value, f'{path}[{i}]')


def _check_num_classes(cfg: Config, expected: int, path: Path) -> None:
    for option, count in _num_classes(cfg.model):
        if count != expected:
            raise UsageError(f'{option}={count}, but the dataset at {path} has {expected} classes: set {option}={expected}.')


def _check_segmentation(dataset: dict, prefix: dict, cfg: Config, sample: int | None) -> None:
    known = _dataset_class(dataset)
    suffixes = [dataset.get(key) or _default(known, key, default) for key, default in (('img_suffix', '.jpg'), ('seg_map_suffix', '.png'))]
    for key, suffix in zip(('img_path', 'seg_map_path'), suffixes, strict=True):
        folder = _path(dataset, prefix[key])
        if not folder.is_dir():
            raise UsageError(f'{folder}: no such folder. {REMEDY}')
        if next(folder.rglob(f'*{suffix}'), None) is None:
            hint = f'{CONVERT} ' if 'labelTrainIds' in suffix else ''
            raise UsageError(f'{folder}: has no files that end in {suffix}. {hint}{REMEDY}')
    image_suffix, label_suffix = suffixes
    check_picture, check_labels = _picture_check(dataset, cfg), _label_check(dataset, known, cfg)
    folder, labels = (_path(dataset, prefix[key]) for key in ('img_path', 'seg_map_path'))

    def check_pair(picture: Path) -> None:
        label = labels / (str(picture.relative_to(folder)).removesuffix(image_suffix) + label_suffix)
        if not label.is_file():
            raise UsageError(f'{label}: no such label map, though there is {picture}. {REMEDY}')
        check_picture(picture)
        check_labels(label)

    _for_all(check_pair, _spread(sorted(folder.rglob(f'*{image_suffix}')), sample))


def _label_check(dataset: dict, known: type, cfg: Config) -> Callable[[Path], None]:
    """A function that raises for a label map that is no label map, or has values that are no class of the dataset."""
    classes = getattr(known, 'METAINFO', {}).get('classes') or _class_names(dataset)
    if classes is None:
        return lambda path: None
    _check_num_classes(cfg, len(_class_names(dataset)), _path(dataset, ''))
    reduce_zero = dataset.get('reduce_zero_label', _default(known, 'reduce_zero_label', False))
    ignore = dataset.get('ignore_index', 255)
    highest = len(classes) - (not reduce_zero)  # with reduce_zero_label, 0 is unlabelled and the classes begin at 1

    def check(path: Path) -> None:
        picture = _open(path, 'label map')
        values = np.asarray(picture)
        if values.ndim != 2:
            raise UsageError(f'{path}: is a picture in colour ({picture.mode}); a label map has one channel, of class indices.')
        wrong = values[(values > highest) & (values != ignore)]
        if wrong.size:
            raise UsageError(
                f'{path}: has the label {wrong[0]}, but the dataset has {len(classes)} classes: labels are 0 to {highest}, and {ignore} '
                f'is ignored. {CONVERT} For other classes set metainfo=dict(classes=(...)) of the datasets and num_classes of the heads.'
            )

    return check


def _default(known: type | None, name: str, default: Any) -> Any:
    """The default of a constructor's argument where it is of the type of ``default``, else ``default``."""
    parameter = inspect.signature(known.__init__).parameters.get(name) if known else None
    return parameter.default if parameter and isinstance(parameter.default, type(default)) else default


def _check_folders(dataset: dict, folder: Path, cfg: Config, sample: int | None) -> None:
    if not folder.is_dir():
        raise UsageError(f'{folder}: no such folder. {REMEDY}')
    classes = sorted(child for child in folder.iterdir() if child.is_dir())
    if not classes:
        raise UsageError(
            f'{folder}: has no class folders; the layout is <split>/<class>/<picture>, or with a list in meta/<split>.txt. {REMEDY}'
        )
    a_class = None if sample is None else max(1, sample // len(classes))
    pictures = []
    for child in classes:
        files = list(islice((file for file in child.rglob('*') if file.suffix.lower() in PICTURES), a_class))
        if not files:
            raise UsageError(f'{child}: has no pictures ({", ".join(PICTURES)}).')
        pictures += files
    names = _class_names(dataset)
    if names is not None and len(names) != len(classes):
        raise UsageError(
            f'{folder}: has {len(classes)} class folders, but the dataset of the config has {len(names)} classes: set '
            f"metainfo=dict(classes=(...)) of the datasets to the folders' names in alphabetic order, and num_classes of the head."
        )
    _check_num_classes(cfg, len(classes), folder)
    _for_all(_picture_check(dataset, cfg), _spread(pictures, sample))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_common_options(parser)
    cfg = load_config(parser.parse_args())
    check_data(cfg, ('train', 'val', 'test'), sample=None)
    print('the datasets of the config are complete and readable')


if __name__ == '__main__':
    run(main)
