"""What the demo is asked for, and its report: demo/demo.py, demo/report.py, demo/picture_errors.py."""

import json
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import report
import torch
from conftest import ROOT, refused
from mmengine.config import Config
from picture_errors import PictureError, _data, _run_lengths, label_errors, matched, object_errors
from small_models import config, save_weights

import demo
from orepa_mm.errors import CheckpointError


def read(folder: Path, text: str) -> Config:
    """A config's text, as in work_dirs/demo/config.py."""
    path = folder / 'a' / 'b' / 'config.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace('../../', f'{ROOT}/'))
    return Config.fromfile(path)


def test_demo_takes_names_as_names(tmp_path):
    names = ['{{ fileDirname }}', "it's", '$(touch x)']
    (tmp_path / 'annotations').mkdir()
    image = dict(id=1, file_name='a.jpg', width=8, height=8)
    content = dict(images=[image], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(names)])
    (tmp_path / 'annotations' / 'instances_train2017.json').write_text(json.dumps(content))
    found, pictures = demo.coco_summary(tmp_path)
    assert (found, pictures) == (names, 1)
    settings = demo.Settings(tmp_path)
    cfg = read(tmp_path, demo.config_text(settings, Path('a.pth'), Path('classes.txt'), len(names), pictures))
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.metainfo.classes == 'classes.txt' and dataset.data_root == f'{tmp_path}/'
        assert next(step for step in dataset.pipeline if step.type == 'Resize').scale == (320, 320)
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 3
    assert cfg.test_evaluator.ann_file == f'{tmp_path}/annotations/instances_val2017.json'
    assert cfg.train_cfg.max_epochs == 3000 and cfg.model.backbone.init_cfg.checkpoint == 'a.pth'
    content['categories'][0]['name'] = 'a\nb'
    (tmp_path / 'annotations' / 'instances_train2017.json').write_text(json.dumps(content))
    with pytest.raises(demo.StepError, match='cannot be printed'):
        demo.coco_summary(tmp_path)


def test_weights_epochs_and_size_reach_the_config(tmp_path):
    text = demo.config_text(demo.Settings(None, tmp_path / 'own.pth', epochs=1, size=96), Path('a.pth'), Path('x'), 0, 0)
    cfg = read(tmp_path, text)
    assert cfg.load_from == str(tmp_path / 'own.pth') and cfg.model.backbone.init_cfg is None
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval, cfg.default_hooks.checkpoint.interval) == (1, 1, 1)
    assert cfg.param_scheduler[1].end == 1 and cfg.train_dataloader.dataset.data_root == 'data/coco-mini/'
    for split in ('train', 'test'):
        steps = cfg[f'{split}_dataloader'].dataset.pipeline
        assert next(step for step in steps if step.type == 'Resize').scale == (96, 96)
    plain = read(tmp_path, demo.config_text(demo.Settings(), Path('a.pth'), Path('x'), 0, 0))
    base = Config.fromfile(ROOT / demo.DETECTOR)
    assert plain.train_dataloader == base.train_dataloader and plain.train_cfg == base.train_cfg


def test_weights_are_checked_before_anything_is_written(tmp_path):
    own = save_weights(config('maskrcnn'), tmp_path / 'own.pth')
    demo.Settings(load_from=own).check_weights(0)
    with pytest.raises(CheckpointError, match='own.pth.*another shape'):
        demo.Settings(load_from=own).check_weights(3)  # of a dataset with other classes


def test_only_what_a_demo_wrote_is_replaced(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(demo.StepError, match='somebody else'):
        report.replace_folder(tmp_path)
    assert (tmp_path / 'mine.txt').read_text() == 'mine'
    (tmp_path / 'logs').mkdir()
    report.replace_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_demo_refuses_what_is_wrong_in_one_line(tools, tmp_path):
    marker = ROOT / 'work_dirs' / 'demo'
    before = sorted(marker.rglob('*')) if marker.exists() else None
    annotations = tmp_path / 'bad' / 'annotations' / 'instances_train2017.json'
    annotations.parent.mkdir(parents=True)
    annotations.write_text('{}')
    refused(tools.run('demo/demo', '--data', tmp_path), 'no such file')
    refused(tools.run('demo/demo', '--data', tmp_path / 'bad'), 'not a COCO annotation file')
    refused(tools.run('demo/demo', '--epochs', '-1'), '--epochs -1: give 1 or more')
    refused(tools.run('demo/demo', '--size', '16'), '--size 16: give 32 to 2048 pixels')
    refused(tools.run('demo/demo', '--load-from', tmp_path / 'none.pth'), 'none.pth: no such checkpoint')
    for options in (dict(load_from=marker / 'detector/last.pth'), dict(data=marker / 'data')):
        with pytest.raises(demo.StepError, match='lies in work_dirs/demo, which is written anew|--data .* lies in work_dirs/demo'):
            demo.Settings(**options).check(marker)
    assert (sorted(marker.rglob('*')) if marker.exists() else None) == before


def test_each_object_is_found_once_by_the_best_box_of_its_class():
    ious = np.array([[0.9, 0.0], [0.95, 0.6], [0.0, 0.7], [0.0, 0.49]])
    assert matched(ious, np.array([0, 0, 0, 1]), np.array([0, 0])) == 2
    assert matched(ious[:1], np.array([1]), np.array([0, 0])) == 0
    assert matched(ious[3:], np.array([0]), np.array([0, 0])) == 0
    assert matched(np.zeros((2, 0)), np.array([0, 1]), np.zeros(0, int)) == 0


@pytest.fixture
def coco(mini_data) -> Config:
    cfg = Config.fromfile(ROOT / demo.DETECTOR)
    cfg.test_dataloader.dataset.data_root = str(mini_data / 'coco-mini') + '/'
    return cfg


@pytest.mark.parametrize('masks', [True, False])
def test_the_annotations_themselves_have_no_error_and_what_is_taken_or_added_counts(masks, coco, tmp_path):
    predictions, expected = [], {}
    for number, info in enumerate(_data(coco)):
        objects = info['instances']
        kept = objects[number % 2 :]  # of every second picture one is missing
        labels = torch.tensor([each['bbox_label'] for each in kept]) + (number == 2)  # all wrong
        boxes = torch.tensor([each['bbox'] for each in kept], dtype=torch.float32)
        found = dict(bboxes=boxes, labels=labels, scores=torch.full((len(kept),), 0.9))
        if masks:
            found['masks'] = [_run_lengths(each['mask'], info['height'], info['width']) for each in kept]
        predictions.append(dict(img_id=info['img_id'], pred_instances=found))
        missing, wrong = (len(objects), len(kept)) if number == 2 else (number % 2, 0)
        expected[Path(info['img_path']).stem] = (missing, wrong, (missing + wrong) / (len(objects) + len(kept)))
    mmengine.dump(predictions, tmp_path / 'predictions.pkl')
    errors = object_errors(coco, tmp_path / 'predictions.pkl')
    assert set(errors) == set(expected) and len(expected) == 4
    for stem, (missing, wrong, error) in expected.items():
        assert errors[stem].error == pytest.approx(error), stem
        assert errors[stem].words.startswith(f'{missing} of') and f', {wrong} of' in errors[stem].words


def test_wrong_pixels_are_counted_where_the_label_map_says_something(mini_data, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs/cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py')
    cfg.test_dataloader.dataset.data_root = str(mini_data / 'cityscapes-mini') + '/'
    for path in (mini_data / 'cityscapes-mini/gtFine/val').rglob('*.png'):
        truth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        found = np.where(truth == 255, 3, truth)
        if '000001' in path.name:
            found[:, : truth.shape[1] // 2] = 19
        cv2.imwrite(str(tmp_path / path.name.replace('gtFine_labelTrainIds', 'leftImg8bit')), found)
    errors = {stem[:11]: each.error for stem, each in label_errors(cfg, tmp_path).items()}
    assert errors.pop('mini_000001') == pytest.approx(0.5, abs=0.1) and set(errors.values()) == {0.0}


def test_the_worst_pictures_come_first_with_their_error(tmp_path):
    names = ('a.jpg', 'b.jpg', 'c.jpg', 'test_d_leftImg8bit.png_4.png')
    for name in names:
        (tmp_path / name).write_bytes(b'')
    errors = {'b': PictureError(0.25, 'few'), 'd_leftImg8bit': PictureError(0.75, 'most wrong')}
    found = report.images(tmp_path, tmp_path, 3, errors)
    assert [source for source, _ in found] == [names[3], 'b.jpg', 'a.jpg'] and found[1][1] == 'b.jpg: error 0.25, few'


def test_the_report_says_what_it_is(coco, tmp_path):
    text = ' '.join(demo.introduction(coco, demo.Settings(), (300, 60)))
    for words in ('a quarter of the usual width', '7 epochs on 300 images', '60 others', '192 x 192', 'make demo DATA='):
        assert words in text
    own = ' '.join(demo.introduction(coco, demo.Settings(data=Path('/x/<y>'), load_from=Path('own.pth')), (8, 4)))
    assert '<y>' in own and 'own.pth' in own and 'make demo DATA=' not in own
    measured = dict(parameters=[2e6, 1e6], difference=0.0, latency=[2.0, 1.0], step=[30.0, 20.0], input=(3, 8, 8), batch=4)
    steps = report.Steps('demo', tmp_path, [('a <step>', 'python ' + 'x' * 300, 1.0)])
    agreement = ['size       pictures  largest difference', '96 x 128   a.jpg + 1  2.0e-06']
    path = demo.report(steps, [text], [{}, {}], measured, agreement, {'a': PictureError(0.5, 'half'), 'b': PictureError(0.0, 'none')})
    page = path.read_text()
    parts = ('Mask R-CNN on an OREPA', 'the mean is 0.25', 'x' * 300, 'a &lt;step&gt;', '<td data-name="pictures">a.jpg + 1</td>')
    for part in (*parts, '<td>training step of 4 images</td><td>30 ms</td>'):
        assert part in page
    style = page[: page.index('</style>')]
    assert 'white-space: pre-wrap' in style and 'overflow-wrap: anywhere' in style  # no line makes the page scroll sideways
