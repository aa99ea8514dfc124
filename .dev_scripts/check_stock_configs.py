#!/usr/bin/env python3
"""Run tools/preflight.py on every config the three toolboxes ship, with made-up data: a config the toolbox can load must not be refused.

    python .dev_scripts/check_stock_configs.py                              # all of them, some minutes on 2 cores
    python .dev_scripts/check_stock_configs.py 'mmseg/stdc/*' 'mmdet/htc/*' # some of them, as <toolbox>/<path below its configs>

For each config a small data root is made that fits its datasets, the datasets are built by the toolbox and a picture is loaded from each,
and then they are checked. Where the layout of a dataset is not known here, nothing but missing files may be complained about.
"""

import argparse
import collections
import contextlib
import copy
import fnmatch
import functools
import hashlib
import importlib
import importlib.util
import io
import json
import logging
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools')]
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DATASETS, init_default_scope  # noqa: E402

TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')
SPLITS = ('train', 'val', 'test')
WIDTH, HEIGHT = 64, 48
COCO_URL = 'http://images.cocodataset.org/'


class Result(NamedTuple):
    """What became of a config.

    ``registered`` when the installed toolbox has its datasets, some of which need further packages, ``fitted`` when data could be made up.
    """

    name: str
    unreadable: str = ''
    registered: bool = True
    fitted: bool = False
    built: bool = False
    loaded: bool = False
    stock_error: str = ''
    refusal: str = ''
    traceback: str = ''
    warnings: tuple[str, ...] = ()

    @property
    def falsely_refused(self) -> bool:
        return bool(self.refusal) and self.registered and (self.built if self.fitted else ': no such ' not in self.refusal)


def stock_configs(patterns: list[str]) -> list[tuple[str, Path]]:
    """The names and paths of the configs that match."""
    found = []
    for toolbox in TOOLBOXES:
        folder = Path(importlib.util.find_spec(toolbox).origin).parent / '.mim' / 'configs'
        paths = [path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.parts]
        found += [(f'{toolbox}/{path.relative_to(folder)}', path) for path in paths]
    return [(name, path) for name, path in found if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def leaves(dataset: Any) -> Iterator[dict]:
    """The datasets inside wrappers."""
    if not isinstance(dataset, dict):
        return
    inner = [item for key in ('dataset', 'datasets') for item in _as_list(dataset.get(key))]
    if not inner:
        yield dataset
    for item in inner:
        yield from leaves(item)


def _as_list(value: Any) -> list:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def class_counts(node: Any) -> Iterator[int]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == 'num_classes' and isinstance(value, int):
                yield value
            yield from class_counts(value)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from class_counts(item)


class DataMaker:
    """Makes small data roots; datasets that read the same files share one."""

    def __init__(self, root: Path):
        self.root, self.made = root, {}

    def fit(self, dataset: dict, cfg: Config) -> bool:
        """Point ``dataset`` at files made for it; False where the layout is not known, and the data root is then an empty folder."""
        with DATASETS.switch_scope_and_registry(dataset.get('_scope_', cfg.get('default_scope'))) as registry:
            known = registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
        if known is None:
            raise LookupError(f'{dataset["type"]} is not registered')
        bases = [cls.__name__ for cls in known.__mro__]
        reader = next(cls.__name__ for cls in known.__mro__ if 'load_data_list' in vars(cls))
        kinds = dict(CocoDataset='coco', BaseSegDataset='segmentation', CustomDataset='folders')
        kind = 'coco' if 'CocoDataset' in bases else kinds.get(reader)
        if kind == 'segmentation' and 'seg_map_path' not in dataset.get('data_prefix', {}):
            kind = None
        keys = ('ann_file', 'data_prefix', 'metainfo', 'split', 'proposal_file', 'img_suffix', 'seg_map_suffix', 'reduce_zero_label')
        signature = repr(
            (known, kind, dataset.get('data_root'), [dataset.get(key) for key in keys], max(class_counts(cfg.model), default=0))
        )
        root = self.root / hashlib.md5(signature.encode()).hexdigest()[:12]
        dataset['data_root'] = str(root)
        if signature not in self.made:
            root.mkdir(parents=True, exist_ok=True)
            if kind:
                getattr(self, f'_make_{kind}')(root, dataset, known, cfg)
            self.made[signature] = True
        return kind is not None

    def _picture(self, path: Path, channels: int | None = 3) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (HEIGHT, WIDTH) if channels is None else (HEIGHT, WIDTH, channels)
        values = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        if path.suffix == '.npy':
            np.save(path, values[:, :, :1].repeat(25, 2))
        else:
            Image.fromarray(values).save(path)

    def _make_coco(self, root: Path, dataset: dict, known: type, cfg: Config) -> None:
        prefix, bases = dataset.get('data_prefix') or {}, [cls.__name__ for cls in known.__mro__]
        names = (dataset.get('metainfo') or {}).get('classes') or known.METAINFO.get('classes')
        names = [names] if isinstance(names, str) else list(names or [])
        if 'V3DetDataset' in bases:
            names = [f'class {i}' for i in range(max(class_counts(cfg.model)))]
            label_file = root / 'annotations/category_name_13204_v3det_2023_v1.txt'
            label_file.parent.mkdir(parents=True, exist_ok=True)
            label_file.write_text('\n'.join(names))
        things = (known.METAINFO.get('thing_classes') or names) if 'CocoPanopticDataset' in bases else names
        content = dict(images=[], annotations=[], categories=[])
        for i, name in enumerate(names):
            content['categories'].append(dict(id=i + 1, name=name, isthing=int(name in things), supercategory='any', frequency='f'))
        # Objects365 puts its pictures into folders, and LVIS names them by address.
        folder = 'patch0/' if 'Objects365V2Dataset' in bases else 'train2017/' if 'LVISDataset' in bases or 'LVISV1Dataset' in bases else ''
        proposals = {}
        for i in (1, 2):
            name = f'{folder}{i:012}.jpg'
            self._picture(root / (prefix.get('img') or '') / name)
            image = dict(id=i, file_name=name, height=HEIGHT, width=WIDTH, neg_category_ids=[], not_exhaustive_category_ids=[])
            if 'LVISV1Dataset' in bases:
                del image['file_name']  # as in the published files
                image['coco_url'] = COCO_URL + name
            content['images'].append(image)
            shape = dict(bbox=[4, 4, 32, 24], area=768, iscrowd=0, category_id=min(i, len(names)))
            polygon = [[4, 4, 36, 4, 36, 28, 4, 28]]
            if 'CocoPanopticDataset' in bases:
                segment = dict(shape, id=1)
                content['annotations'].append(dict(image_id=i, file_name=name.replace('.jpg', '.png'), segments_info=[segment]))
            else:
                content['annotations'].append(dict(shape, id=i, image_id=i, segmentation=polygon))
            if prefix.get('seg'):
                label = root / prefix['seg'] / name.replace('.jpg', '.png')
                label.parent.mkdir(parents=True, exist_ok=True)
                values = np.zeros((HEIGHT, WIDTH, 3) if 'CocoPanopticDataset' in bases else (HEIGHT, WIDTH), np.uint8)
                values[4:28, 4:36] = [1, 0, 0] if values.ndim == 3 else 1
                Image.fromarray(values).save(label)
            proposals['/'.join(Path(prefix.get('img') or '', name).parts[-2:])] = dict(
                bboxes=np.float32([[4, 4, 36, 28], [0, 0, 20, 20]]), scores=np.float32([0.9, 0.5])
            )
        path = root / dataset['ann_file']
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        if dataset.get('proposal_file'):
            path = root / dataset['proposal_file']
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(proposals))

    def _make_segmentation(self, root: Path, dataset: dict, known: type, cfg: Config) -> None:
        prefix = dataset['data_prefix']
        for key in ('img_path', 'seg_map_path'):
            (root / prefix[key]).mkdir(parents=True, exist_ok=True)
        if dataset.get('ann_file'):
            path = root / dataset['ann_file']
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('a\nb\n')
        settings = {key: value for key, value in dataset.items() if key not in ('type', 'pipeline', '_scope_')}
        built = known(**settings, pipeline=[], lazy_init=True)  # for the suffixes
        highest = len(known.METAINFO.get('classes') or built.metainfo['classes']) - (not built.reduce_zero_label)
        for name in ('a', 'b'):
            self._picture(root / prefix['img_path'] / f'{name}{built.img_suffix}')
            labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
            labels.flat[: highest + 1] = range(highest + 1)
            Image.fromarray(labels).save(root / prefix['seg_map_path'] / f'{name}{built.seg_map_suffix}')

    def _make_folders(self, root: Path, dataset: dict, known: type, cfg: Config) -> None:
        prefix = dataset.get('data_prefix') or dataset.get('split', '')
        folder = root / (prefix.get('img_path', '') if isinstance(prefix, dict) else prefix)
        names = (dataset.get('metainfo') or {}).get('classes') or known.METAINFO.get('classes')
        count = len(names) if names else max(class_counts(cfg.model), default=2)
        listed = dataset.get('ann_file') or (f'meta/{dataset.get("split")}.txt' if count > 10000 else '')
        if listed:
            self._picture(folder / 'a.jpg')
            path = root / listed
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'a.jpg 0\na.jpg {count - 1}\n')
            return
        self._picture(root / 'source.jpg')
        content = (root / 'source.jpg').read_bytes()
        for i in range(count):
            path = folder / f'class{i:05}' / f'{i}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def place_evaluator_files(cfg: Config, moved: dict[str, str], root: Path) -> None:
    """Point the evaluators' annotation files at the made-up ones, or at an empty one."""
    for split in SPLITS:
        for evaluator in _as_list(cfg.get(f'{split}_evaluator')):
            if isinstance(evaluator, dict) and isinstance(evaluator.get('ann_file'), str):
                empty = root / 'empty.json'
                empty.write_text(
                    json.dumps(
                        dict(images=[dict(id=1, file_name='a.jpg', width=1, height=1)], annotations=[], categories=[dict(id=1, name='a')])
                    )
                )
                evaluator['ann_file'] = moved.get(os.path.normpath(evaluator['ann_file']), str(empty))


def provide_lvis() -> None:
    """A stand-in for the package ``lvis``, which only reads COCO-like files here."""
    if 'lvis' not in sys.modules and importlib.util.find_spec('lvis') is None:
        from mmdet.datasets.api_wrappers import COCO

        sys.modules['lvis'] = types.SimpleNamespace(LVIS=COCO)


@functools.cache
def _load_preflight(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location('checked_preflight', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_pipelines(dataset: Any) -> Any:
    if isinstance(dataset, dict):
        return type(dataset)({key: [] if key == 'pipeline' else without_pipelines(value) for key, value in dataset.items()})
    return [without_pipelines(item) for item in dataset] if isinstance(dataset, list | tuple) else dataset


class StockBuilder:
    """Builds datasets as the stock tools do, each only once."""

    def __init__(self):
        self.known = {}

    def build(self, dataset: dict, scope: str) -> tuple[bool, bool, str]:
        """Whether the dataset builds, whether it also gives a sample, and the error."""
        key = repr(dataset)
        if key not in self.known:
            self.known[key] = self._build(dataset, scope)
        return self.known[key]

    def _build(self, dataset: dict, scope: str) -> tuple[bool, bool, str]:
        error = ''
        with DATASETS.switch_scope_and_registry(scope) as registry:
            for settings, whole in ((dataset, True), (without_pipelines(dataset), False)):
                try:
                    built = registry.build(copy.deepcopy(settings))
                    if len(built) == 0:
                        return False, False, 'the dataset is empty'
                except Exception as failure:
                    error = error or f'{type(failure).__name__}: {failure}'
                    continue
                try:
                    if whole:
                        _ = built[0]
                    return True, whole, error
                except Exception as failure:
                    return True, False, f'{type(failure).__name__}: {failure}'
        return False, False, error


def check(name: str, path: Path, maker: DataMaker, builder: StockBuilder, preflight: types.ModuleType) -> Result:
    """Make up data for one config, build its datasets, check them."""
    toolbox = name.split('/')[0]
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        return Result(name, unreadable=f'{type(error).__name__}: {error}')
    scope = cfg.setdefault('default_scope', toolbox)
    init_default_scope(scope)
    cfg.setdefault('model', {})
    loaders = {split: cfg[f'{split}_dataloader'] for split in SPLITS if cfg.get(f'{split}_dataloader')}
    moved, fitted, registered, stock_error = {}, True, True, ''
    for loader in loaders.values():
        for dataset in leaves(loader['dataset']):
            before = os.path.normpath(os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or ''))
            try:
                fitted &= maker.fit(dataset, cfg)
            except LookupError as error:
                fitted, registered, stock_error = False, False, str(error)
            moved[before] = os.path.join(dataset['data_root'], dataset.get('ann_file') or '')
    place_evaluator_files(cfg, moved, maker.root)
    built, loaded = [], []
    if fitted:
        for loader in loaders.values():
            ok, sample, error = builder.build(loader['dataset'], scope)
            built.append(ok)
            loaded.append(sample)
            stock_error = stock_error or error
    refusal = traceback = ''
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            preflight.check_data(cfg, SPLITS)
        except preflight.UsageError as error:
            refusal = str(error)
        except Exception as error:
            traceback = f'{type(error).__name__}: {error}'
    doubts = tuple(line for line in printed.getvalue().splitlines() if line.startswith('warning: '))
    fitted &= bool(loaders)
    return Result(name, '', registered, fitted, all(built), all(loaded), stock_error, refusal, traceback, doubts)


def _quiet() -> None:
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)


@functools.cache
def _tools(root: str) -> tuple[DataMaker, StockBuilder]:
    return DataMaker(Path(root) / str(os.getpid())), StockBuilder()


def _check_some(task: tuple[list[tuple[str, Path]], str, str]) -> list[Result]:
    configs, root, preflight = task
    _quiet()
    provide_lvis()
    maker, builder = _tools(root)
    with contextlib.redirect_stdout(io.StringIO()):
        return [check(name, path, maker, builder, _load_preflight(preflight)) for name, path in configs]


def check_all(configs: list[tuple[str, Path]], root: Path, jobs: int, preflight: Path) -> Iterator[Result]:
    """The results of the configs, as they come."""
    folders = collections.defaultdict(list)
    for name, path in configs:
        folders[path.parent].append((name, path))
    tasks = [(group, str(root), str(preflight)) for group in folders.values()]
    if jobs == 1:
        for task in tasks:
            yield from _check_some(task)
        return
    with multiprocessing.get_context('spawn').Pool(jobs) as pool:
        for results in pool.imap_unordered(_check_some, tasks):
            yield from results


def summary(results: list[Result]) -> str:
    """A table of the counts, and below it every config that was refused though it should not be."""
    columns = dict(
        configs=lambda r: True,
        read=lambda r: not r.unreadable,
        registered=lambda r: not r.unreadable and r.registered,
        fitted=lambda r: r.fitted,
        built=lambda r: r.fitted and r.built,
        loaded=lambda r: r.fitted and r.loaded,
        refused=lambda r: r.refusal,
        falsely=lambda r: r.falsely_refused,
        tracebacks=lambda r: r.traceback,
        warned=lambda r: r.warnings,
    )
    lines = [f'{"":12}' + ''.join(f'{column:>12}' for column in columns)]
    for toolbox in (*TOOLBOXES, 'all'):
        rows = [result for result in results if toolbox in ('all', result.name.split('/')[0])]
        lines.append(f'{toolbox:12}' + ''.join(f'{sum(bool(test(row)) for row in rows):12}' for test in columns.values()))
    for title, text in (
        ('falsely refused', lambda r: r.refusal if r.falsely_refused else ''),
        ('tracebacks', lambda r: r.traceback),
        ('warned', lambda r: '; '.join(r.warnings)),
        ('data made up, but the toolbox does not build them', lambda r: '' if not r.fitted or r.built else r.stock_error),
        ('not read', lambda r: r.unreadable),
    ):
        rows = [result for result in results if text(result)]
        lines += [f'\n{title}: {len(rows)}'] if rows else []
        lines += [f'  {row.name}: {" ".join(text(row).split())[:240]}' for row in rows]
    return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('patterns', nargs='*', default=['*'], help='which configs, as <toolbox>/<path below its configs>')
    parser.add_argument('--jobs', type=int, default=2, help='processes')
    parser.add_argument('--preflight', type=Path, default=ROOT / 'tools' / 'preflight.py', help='check with another version')
    args = parser.parse_args()
    configs, results, start = stock_configs(args.patterns), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix='stock-configs-') as root:
        for i, result in enumerate(check_all(configs, Path(root), args.jobs, args.preflight.resolve()), 1):
            results.append(result)
            if i % 50 == 0 or i == len(configs):
                false = sum(result.falsely_refused for result in results)
                print(f'{i} of {len(configs)} configs, {false} falsely refused, {time.monotonic() - start:.0f} s', flush=True)
    print(summary(sorted(results)))
    return int(any(result.falsely_refused or result.traceback for result in results))


if __name__ == '__main__':
    sys.exit(main())
