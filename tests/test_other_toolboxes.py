"""Toolboxes beyond mmdet, mmseg and mmpretrain, where they are installed: branches beside the optimizer, and in the model."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import done, refused
from mmengine.config import Config
from small_models import package, stock
from small_runs import last_checkpoint
from test_two_lines import LINES, check_resuming, check_stock_scripts, script

CONFIGS = dict(
    mmpose='body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192',
    mmrotate='rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota',
    mmyolo='yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco',
)
INSIDE = """
custom_imports = dict(imports=['orepa_mm'], allow_failed_imports=False)
default_hooks = dict(orepa=dict(type='OREPAHook'))
model.update(backbone=dict(_delete_=True, type='{}.OREPAResNet', depth=18, stem_channels=16, base_channels={}, out_indices={}), {})
"""
SETTINGS = dict(
    mmpose=INSIDE.format('mmpretrain', 8, '(3,)', 'head=dict(in_channels=64)'),
    mmrotate=INSIDE.format('mmdet', 8, '(0, 1, 2, 3)', 'neck=dict(in_channels=[8, 16, 32, 64])'),
    # The stock constructor knows parameters by their names.
    mmyolo=INSIDE.format('mmdet', 32, '(1, 2, 3)', '')
    + "optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=0.01), constructor='OREPAOptimWrapperConstructor')",
)
pytestmark = pytest.mark.slow


@pytest.fixture(params=CONFIGS)
def scope(request) -> str:
    pytest.importorskip(request.param)
    return request.param


def draw(scope: str, coco: Path, folder: Path) -> Path:
    """The boxes of a COCO set as people with keypoints, and turned, for DOTADataset; the set itself for mmyolo."""
    if scope == 'mmyolo':
        return coco
    for split in ('train', 'val'):
        content = json.loads((coco / f'annotations/instances_{split}2017.json').read_text())
        boxes = content['annotations'] = [each for each in content['annotations'] if min(each['bbox'][2:]) > 8]
        for name in ('annotations', f'{split}2017', f'{split}/images', f'{split}/annfiles'):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for image in content['images']:
            name = Path(image['file_name'])
            picture = cv2.imread(str(coco / f'{split}2017/{name}'))
            cv2.imwrite(str(folder / f'{split}2017/{name}'), picture)
            cv2.imwrite(str(folder / f'{split}/images/{name.stem}.png'), picture)
            lines = []
            for each in boxes:
                x, y, width, height = each['bbox']
                corners = cv2.boxPoints(((x + width / 2, y + height / 2), (width, height), 10.0)).reshape(-1)
                lines += [' '.join(map(str, corners)) + ' plane 0'] * (each['image_id'] == image['id'])
            (folder / f'{split}/annfiles/{name.stem}.txt').write_text('\n'.join(lines))
        points = np.stack([np.arange(17) * 7 % 17 / 17, np.arange(17) / 17], 1)
        for each in boxes:
            here = each['bbox'][:2] + points * each['bbox'][2:]
            keypoints = np.concatenate([here, np.full((17, 1), 2)], 1)  # 2: visible
            each.update(category_id=1, keypoints=keypoints.reshape(-1).tolist(), num_keypoints=17)
        content['categories'] = [dict(id=1, name='person')]
        (folder / f'annotations/person_keypoints_{split}2017.json').write_text(json.dumps(content))
    return folder


def write_config(scope: str, coco: Path, folder: Path, lines: str = LINES) -> Path:
    """The stock config on small data; ``test_two_lines`` has those of the other toolboxes."""
    data = draw(scope, coco, folder / 'data')
    base = stock(scope, CONFIGS[scope])
    model, train, val, metric = dict(backbone=dict(init_cfg=None)), {}, {}, {}
    pipeline = base.train_pipeline, base.get('val_pipeline') or base.test_pipeline
    if scope == 'mmpose':
        val |= dict(bbox_file=None)
        ann_file = f'{data}/annotations/person_keypoints_val2017.json'
        metric = [base.val_evaluator | dict(ann_file=ann_file), dict(type='EPE'), dict(type='PCKAccuracy', thr=0.5)]
    elif scope == 'mmrotate':
        for split, part in ((train, 'train'), (val, 'val')):
            split |= dict(ann_file=f'{part}/annfiles/', data_prefix=dict(img_path=f'{part}/images/'))
        model, metric = model | dict(test_cfg=dict(score_thr=0.0)), dict(iou_thrs=0.1)
    else:
        # What Mosaic mixes in is drawn of all samples; Albu needs a package of its own.
        pipeline = [*base.pre_transform, *pipeline[1][1:3], pipeline[0][-1]], pipeline[1]
        val |= dict(batch_shapes_cfg=None)
        metric = dict(ann_file=f'{data}/annotations/instances_val2017.json', metric='proposal', proposal_nums=(100, 300, 1000))
        anchors = dict(base_sizes=[[(12, 12), (24, 24), (36, 36)]] * 3)  # of the size of what is drawn
        model = dict(bbox_head=dict(prior_generator=anchors), test_cfg=dict(score_thr=0.0))
    for step in (*pipeline[0], *pipeline[1]):
        step.update({key: (64, 64) for key in ('scale', 'img_scale') if key in step})
    cfg = Config(dict(model=model, randomness=dict(seed=0), train_cfg=dict(max_epochs=1, val_interval=1)))
    for split, dataset, steps in (('train', train, pipeline[0]), ('val', val, pipeline[1]), ('test', val, pipeline[1])):
        dataset = dict(dataset, data_root=f'{data}/', pipeline=steps)
        cfg[f'{split}_dataloader'] = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
    cfg.val_evaluator = cfg.test_evaluator = metric
    target = folder / f'{scope}{"" if lines else "_stock"}.py'
    lines = lines.format(branches='full' if scope == 'mmyolo' else 'light')
    target.write_text(f"_base_ = '{package(scope) / 'configs' / CONFIGS[scope]}.py'\n{cfg.dump()}{lines}")
    return target


def test_the_stock_script_trains_and_the_stock_network_tests(scope, mini_data, tmp_path):
    data = mini_data / 'coco-mini'
    config, plain = (write_config(scope, data, tmp_path, lines) for lines in (LINES, ''))
    _, trained = check_stock_scripts(scope, config, plain, tmp_path)
    assert any(value > 0 for value in trained.values())


def test_our_script_resumes_as_if_undisturbed(scope, mini_data, tmp_path, tools):
    check_resuming(tools, write_config(scope, mini_data / 'coco-mini', tmp_path), tmp_path)


def test_branches_in_the_model_are_trained_tested_and_converted(scope, mini_data, tmp_path, tools):
    config = write_config(scope, mini_data / 'coco-mini', tmp_path, SETTINGS[scope])
    done(tools.run('tools/train', config, '--work-dir', tmp_path / 'run'))
    checkpoint = last_checkpoint(tmp_path / 'run')
    results = []
    for form in ('--no-reparameterize', '--reparameterize'):
        arguments = (
            config,
            checkpoint,
            '--metrics',
            tmp_path / 'metrics.json',
            '--show-dir',
            tmp_path / 'show',
            '--out',
            tmp_path / 'out.pkl',
        )
        done(tools.run('tools/test', *arguments, '--work-dir', tmp_path / form, form))
        results.append(json.loads((tmp_path / 'metrics.json').read_text()))
        assert any((tmp_path / 'show').rglob('*.*'))
        assert ('Re-parameterized' in next((tmp_path / form).rglob('*.log')).read_text()) == (form == '--reparameterize')
    assert results[0] == pytest.approx(results[1], abs=1e-3)
    augmented = tools.run('tools/test', config, checkpoint, '--work-dir', tmp_path / 'tta', '--tta')
    if scope == 'mmyolo':  # whose config has both
        done(augmented)
    else:
        refused(augmented, f'for {scope} give tta_model and tta_pipeline')
    done(tools.run('tools/model_converters/reparameterize_model', config, checkpoint, tmp_path / 'stock'))
    script(scope, 'test', tmp_path / 'stock/config.py', tmp_path / 'stock/model.pth', blocked=tmp_path / 'blocked')
