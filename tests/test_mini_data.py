"""The drawn datasets: the same every time, and readable by the stock datasets and metrics."""

import hashlib
import subprocess
import sys

import cv2
import make_mini_data
import numpy as np
import pytest
from conftest import done, full_disk, refused
from pycocotools.coco import COCO


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*.*'))
        if path.name != 'DRAWN.txt'
    }


def test_same_seed_same_files(tmp_path):
    for seed, folder in ((3, 'a'), (3, 'b'), (4, 'c')):
        for name in make_mini_data.DATASETS:
            make_mini_data.make(name, tmp_path / folder / name, 2, 1, 64, seed)
    a, b, c = (digest(tmp_path / folder) for folder in 'abc')
    assert a == b and a.keys() == c.keys() and len(a) == 3 + 5 + 8
    assert all(a[name] != c[name] for name in a)


def test_coco_annotations_agree_with_themselves(mini_data):
    coco = COCO(str(mini_data / 'coco-mini/annotations/instances_train2017.json'))
    names = {category['name']: category['id'] for category in coco.loadCats(coco.getCatIds())}
    assert len(names) == 80 and names['person'] == 1 and names['sports ball'] == 37 and names['toothbrush'] == 90
    assert len(coco.getAnnIds()) > 10
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        x, y, w, h = annotation['bbox']
        ys, xs = np.nonzero(mask)
        assert abs(xs.min() - x) <= 1 and abs(xs.max() + 1 - x - w) <= 1 and abs(ys.min() - y) <= 1 and abs(ys.max() + 1 - y - h) <= 1
        assert 0.9 < mask.sum() / annotation['area'] < 1.1


def test_later_shapes_hide_earlier_ones():
    scene = make_mini_data.draw_scene(np.random.default_rng(1), 96, 128, ['circle'] * 12, (0.2, 0.4))
    total = np.sum([instance.mask for instance in scene.instances], axis=0)
    assert len(scene.instances) >= 2 and total.max() == 1
    assert scene.image.dtype == np.uint8 and scene.image.shape == (96, 128, 3)


def test_cityscapes_labels_are_train_ids(mini_data):
    for path in (mini_data / 'cityscapes-mini/gtFine').rglob('*_gtFine_labelTrainIds.png'):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.ndim == 2 and set(np.unique(labels)) <= {0, 2, 10, 255, *(shape[1] for shape in make_mini_data.SHAPES.values())}
        picture = path.name.replace('gtFine_labelTrainIds', 'leftImg8bit')
        assert (path.parents[3] / 'leftImg8bit' / path.parts[-3] / 'mini' / picture).is_file()


def test_cityscapes_instances_agree_with_the_label_maps(mini_data):
    root = mini_data / 'cityscapes-mini'
    coco = COCO(str(root / 'annotations/instancesonly_filtered_gtFine_train.json'))
    train_ids = dict(make_mini_data.CITYSCAPES_THINGS.values())
    assert coco.getAnnIds()
    for instance in coco.loadAnns(coco.getAnnIds()):
        name = coco.loadImgs(instance['image_id'])[0]['file_name']
        assert (root / 'leftImg8bit/train' / name).is_file()
        path = root / 'gtFine/train' / name.replace('leftImg8bit', 'gtFine_labelTrainIds')
        inside = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[coco.annToMask(instance).astype(bool)]
        assert set(np.unique(inside)) <= {train_ids[instance['category_id']], 255} and (inside != 255).any()


SMALL = ('--train', '1', '--val', '1', '--size', '64')


def test_what_is_there_is_kept_unless_forced(tmp_path, tools):
    arguments = ('demo/make_mini_data', 'cityscapes', '--out', tmp_path, *SMALL)
    done(tools.run(*arguments))
    before = digest(tmp_path)
    done(tools.run(*arguments, '--seed', '5'))
    assert digest(tmp_path) == before
    done(tools.run(*arguments, '--seed', '5', '--force'))
    assert digest(tmp_path) != before
    for wrong in (('kitti',), ('--train', '0'), ('coco', '--size', '1')):
        assert tools.run('demo/make_mini_data', *wrong)[0] == 2


def test_what_is_not_drawn_here_is_left_alone(tmp_path, tools):
    mine = [tmp_path / 'coco-mini' / 'mine.txt', tmp_path / 'coco-mini.partial' / 'mine.txt']
    for path in mine:
        path.parent.mkdir()
        path.write_text('mine')
    refused(tools.run('demo/make_mini_data', 'coco', '--out', tmp_path, '--force', *SMALL), 'was not drawn by this script')
    assert all(path.read_text() == 'mine' for path in mine) and len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_ends_it_and_leaves_nothing_half_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(type(tmp_path), 'write_bytes', full_disk)
    with pytest.raises(OSError, match='No space left'):
        make_mini_data.make('imagenet', tmp_path / 'imagenet-mini', 2, 1, 64)
    assert not list(tmp_path.iterdir())


def test_two_at_once_leave_a_whole_set(tmp_path):
    command = [sys.executable, make_mini_data.__file__, 'imagenet', '--out', str(tmp_path), '--force', *SMALL, '--train', '5', '--val', '5']
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1] for process in running]
    assert 0 in [process.returncode for process in running], errors
    assert len(list((tmp_path / 'imagenet-mini').rglob('*.jpg'))) == 10 and len(list(tmp_path.iterdir())) == 1
