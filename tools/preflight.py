"""Checks of a config's datasets before a run: files there, readable, and of the classes the model is built for."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import UsageError
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

PICTURES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.webp', '.tif', '.tiff')
REMEDY = 'Set data_root (or the dataset settings) in the config or with --cfg-options; tools/make_mini_data.py draws small sets.'


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check the datasets of the dataloaders ``splits`` ('train', 'val', 'test') of ``cfg``.

    Raises:
        UsageError: When a folder or file is missing, empty, of another format, or of other classes than the model's.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    parsed = set()
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in _datasets(loader.get('dataset')) if loader else ():
            _check_dataset(dataset, cfg)
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


def _check_dataset(dataset: dict, cfg: Config) -> None:
    kinds = {cls.__name__ for cls in getattr(_dataset_class(dataset), '__mro__', ())}
    prefix, ann_file = dataset.get('data_prefix') or '', dataset.get('ann_file') or ''
    if '://' in f'{dataset.get("data_root")}{ann_file}':
        return
    if 'CocoDataset' in kinds:
        categories = _check_coco(dataset, _path(dataset, ann_file), prefix or {})
        _check_classes(dataset, cfg, _path(dataset, ann_file), categories)
    elif 'BaseSegDataset' in kinds and not ann_file and 'seg_map_path' in prefix:
        _check_segmentation(dataset, prefix)
    elif _dataset_class(dataset).__name__ in ('CustomDataset', 'ImageNet') and not ann_file:
        folder = prefix.get('img_path', '') if isinstance(prefix, dict) else prefix
        _check_folders(_path(dataset, folder or dataset.get('split', '')), cfg)


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


def _check_coco(dataset: dict, path: Path, prefix: dict) -> list[str]:
    content = _read_coco(path)
    folder = _path(dataset, prefix.get('img', ''))
    first = folder / content['images'][0]['file_name']
    if not first.is_file():
        raise UsageError(f'{first}: no such picture, though {path} lists it. {REMEDY}')
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


def _check_segmentation(dataset: dict, prefix: dict) -> None:
    known = _dataset_class(dataset)
    suffixes = [dataset.get(key) or _default(known, key, default) for key, default in (('img_suffix', '.jpg'), ('seg_map_suffix', '.png'))]
    for key, suffix in zip(('img_path', 'seg_map_path'), suffixes, strict=True):
        folder = _path(dataset, prefix[key])
        if not folder.is_dir():
            raise UsageError(f'{folder}: no such folder. {REMEDY}')
        if next(folder.rglob(f'*{suffix}'), None) is None:
            raise UsageError(f'{folder}: has no files that end in {suffix}. {REMEDY}')


def _default(known: type | None, name: str, default: str) -> str:
    parameter = inspect.signature(known.__init__).parameters.get(name) if known else None
    return parameter.default if parameter and isinstance(parameter.default, str) else default


def _check_folders(folder: Path, cfg: Config) -> None:
    if not folder.is_dir():
        raise UsageError(f'{folder}: no such folder. {REMEDY}')
    classes = sorted(child for child in folder.iterdir() if child.is_dir())
    if not classes:
        raise UsageError(f'{folder}: has no class folders; the layout is <split>/<class>/<picture>. {REMEDY}')
    for child in classes:
        if not any(file.suffix.lower() in PICTURES for file in child.rglob('*')):
            raise UsageError(f'{child}: has no pictures ({", ".join(PICTURES)}).')
    _check_num_classes(cfg, len(classes), folder)
