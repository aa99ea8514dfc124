"""A config that ships with a toolbox, with data that fits it, is not refused."""

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import preflight
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from orepa_mm.errors import UsageError
from orepa_mm.registry import class_of

SPLITS = ('train', 'val', 'test')
WIDTH, HEIGHT = 64, 48
# It trains on 21 classes of Pascal VOC and tests on 20, all of whose labels are other ones.
RIGHTLY = {'san-vit-b16_voc12aug-640x640.py', 'san-vit-l14_voc12aug-640x640.py'}


def save(path: Path, values: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8) if values is None else values).save(path, format='PNG')


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_coco(kind: type, built: Any) -> None:
    bases = {cls.__name__ for cls in kind.__mro__}
    panoptic, names = 'CocoPanopticDataset' in bases, list(built.metainfo['classes'])
    things = built.metainfo.get('thing_classes') or names
    categories = [dict(id=i, name=name, isthing=int(name in things)) for i, name in enumerate(names, 1)]
    images, annotations = [], []
    for i in (1, 2):
        name = f'{i}.jpg'
        save(Path(built.data_prefix['img'], name))
        place = dict(coco_url=f'http://images.cocodataset.org/{name}') if 'LVISV1Dataset' in bases else dict(file_name=name)
        images.append(dict(place, id=i, height=HEIGHT, width=WIDTH, neg_category_ids=[], not_exhaustive_category_ids=[]))
        shape = dict(id=i, bbox=[4, 4, 32, 24], area=768, iscrowd=0, category_id=min(i, len(names)))
        whole = dict(file_name='a.png', segments_info=[shape]) if panoptic else dict(shape, segmentation=[[4, 4, 36, 4, 36, 28]])
        annotations.append(dict(whole, image_id=i))
    write(Path(built.ann_file), json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def make_label_maps(kind: type, built: Any) -> None:
    highest = len(kind.METAINFO.get('classes') or built.metainfo['classes']) - (not built.reduce_zero_label)
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels.flat[: highest + 1] = range(highest + 1)
    for name in 'ab':
        save(Path(built.data_prefix['img_path'], f'{name}{built.img_suffix}'))
        save(Path(built.data_prefix['seg_map_path'], f'{name}{built.seg_map_suffix}'), labels)


def make_folders(kind: type, built: Any) -> None:
    if built.ann_file:
        write(Path(built.ann_file), 'a.jpg 0\n')
    for i in range(1 if built.ann_file else len(built.CLASSES or 'ab')):
        save(Path(built.img_prefix, f'class{i:05}', 'a.jpg'))


MAKERS = dict.fromkeys(('CocoDataset', 'CocoPanopticDataset', 'LVISV1Dataset'), make_coco)
MAKERS |= dict(BaseSegDataset=make_label_maps, CustomDataset=make_folders)


def fill(dataset: dict, root: Path) -> bool:
    """Point a dataset to files made for it, where its layout is known; datasets that read the same files share them."""
    kind = class_of(dataset['type'], DATASETS, dataset.get('_scope_'))
    settings = {key: value for key, value in dataset.items() if key not in ('type', '_scope_', 'pipeline')}
    folder = root / hashlib.md5(repr((kind, settings)).encode()).hexdigest()
    dataset['data_root'] = settings['data_root'] = str(folder)
    prefix = dataset.get('data_prefix') or {}
    reader = next((cls.__name__ for cls in getattr(kind, '__mro__', ()) if 'load_data_list' in vars(cls)), '')
    if reader not in MAKERS or kind.__name__ == 'V3DetDataset' or (reader == 'BaseSegDataset' and 'seg_map_path' not in prefix):
        return False
    if not folder.is_dir():
        for part in prefix.values() if isinstance(prefix, dict) else ():
            Path(folder, part or '').mkdir(parents=True, exist_ok=True)
        if reader == 'BaseSegDataset' and dataset.get('ann_file'):  # some look for it as they are built
            write(folder / dataset['ann_file'], 'a\nb\n')
        MAKERS[reader](kind, kind(**settings, pipeline=[], lazy_init=True))
    return True


def refusal(path: Path, root: Path) -> tuple[str, bool]:
    """What is said of a config, and whether there are data that fit it."""
    try:
        cfg = Config.fromfile(path)
    except Exception:  # a base of it is not there
        return '', False
    init_default_scope(cfg.setdefault('default_scope', path.parents[4].name))
    cfg.setdefault('model', {})
    moved, fits = {}, []
    for split in SPLITS:
        for dataset in preflight.datasets_in((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            before = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            fits.append(fill(dataset, root))
            moved[os.path.normpath(before)] = os.path.join(dataset['data_root'], dataset.get('ann_file') or '')
    for split in SPLITS:
        found = cfg.get(f'{split}_evaluator')
        for evaluator in found if isinstance(found, list | tuple) else [found]:
            if evaluator and isinstance(evaluator.get('ann_file'), str):
                evaluator['ann_file'] = moved.get(os.path.normpath(evaluator['ann_file']))
    try:
        preflight.check_data(cfg, SPLITS)
    except UsageError as error:
        return str(error), all(fits)
    return '', all(fits)


@pytest.mark.slow
@pytest.mark.parametrize(('toolbox', 'most'), dict(mmdet=700, mmseg=650, mmpretrain=450).items())
def test_stock_configs_are_not_refused(toolbox, most, tmp_path, capsys):
    folder, fitted, wrong = Path(find_spec(toolbox).origin).parent / '.mim' / 'configs', 0, {}
    paths = [path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.parts]
    for path in paths:
        said, fits = refusal(path, tmp_path)
        fitted += fits
        if path.name not in RIGHTLY and (said if fits else said and 'no such ' not in said.lower()):
            wrong[path.name] = said
    assert not wrong and fitted > most, f'{fitted} of {len(paths)}: {wrong}'
