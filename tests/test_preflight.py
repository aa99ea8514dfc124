"""Datasets and checkpoints that cannot be used are named, with the remedy, before training starts."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import preflight
import pytest
import torch
from mmengine.config import Config
from test_tools import SCOPES, refused

PICTURE = dict(imagenet='train/circle/*.jpg', coco='train2017/*.jpg', cityscapes='leftImg8bit/train/mini/*.png')


@pytest.fixture
def copied(mini_data, tmp_path):
    """A copy of a small dataset to spoil, and the option that trains on it."""

    def copy(name: str) -> tuple[Path, dict]:
        root = tmp_path / f'{name}-spoilt'
        shutil.copytree(mini_data / f'{name}-mini', root)
        return root, {'train_dataloader.dataset.data_root': str(root)}

    return copy


def last(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[-1]


@pytest.mark.parametrize('name', SCOPES)
def test_picture_cut_short(name, copied, tools, tmp_path):
    root, options = copied(name)
    path = last(root, PICTURE[name])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(tools.train(name, tmp_path / 'run', options=options), path.name, 'cannot be read as a picture', 'copy it again')
    path.write_text('hello')
    refused(tools.train(name, tmp_path / 'run', options=options), path.name, 'cannot be read as a picture')
    assert not (tmp_path / 'run').exists()


def test_picture_that_is_listed_and_not_there(copied, tools, tmp_path):
    root, options = copied('coco')
    path = last(root, PICTURE['coco'])
    path.unlink()
    refused(tools.train('coco', tmp_path / 'run', options=options), path.name, 'no such picture', 'instances_train2017.json')


def test_grayscale_pictures_train_where_the_pipeline_converts_them(copied, tools, tmp_path):
    root, options = copied('imagenet')
    for path in root.glob('train/*/*.jpg'):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    status, error = tools.train('imagenet', tmp_path / 'run', '--no-validate', options=options, iterations=1)
    assert status == 0, error
    options['train_dataloader.dataset.pipeline.0.color_type'] = 'unchanged'
    refused(
        tools.train('imagenet', tmp_path / 'again', options=options), str(root), 'loaded with 1 channel ', 'takes 3', "color_type='color'"
    )


def test_label_outside_the_classes(copied, tools, tmp_path):
    root, options = copied('cityscapes')
    path = last(root, 'gtFine/train/mini/*.png')
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[3, 5] = 33
    cv2.imwrite(str(path), labels)
    refused(tools.train('cityscapes', tmp_path / 'run', options=options), path.name, 'label 33', '19 classes', 'dataset_converters')
    assert not (tmp_path / 'run').exists()


def test_reduce_zero_label_moves_the_range(tmp_path):
    for folder in ('images', 'annotations'):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / 'images/a.jpg'), np.zeros((8, 8, 3), np.uint8))
    cfg = Config(dict(default_scope='mmseg', model=dict(decode_head=dict(num_classes=150))))
    prefix = dict(img_path='images', seg_map_path='annotations')
    dataset = dict(type='ADE20KDataset', data_root=str(tmp_path), data_prefix=prefix, pipeline=[])
    cfg.train_dataloader = dict(dataset=dataset)
    for highest in (150, 151):
        cv2.imwrite(str(tmp_path / 'annotations/a.png'), np.uint8([[0, highest], [255, 1]]))
        if highest == 150:
            preflight.check_data(cfg, ('train',))
    with pytest.raises(preflight.UsageError, match='label 151.*150 classes: labels are 0 to 150'):
        preflight.check_data(cfg, ('train',))


def test_label_map_in_colour_or_missing(copied, tools, tmp_path):
    root, options = copied('cityscapes')
    path = last(root, 'gtFine/train/mini/*.png')
    cv2.imwrite(str(path), np.zeros((64, 128, 3), np.uint8))
    refused(tools.train('cityscapes', tmp_path / 'run', options=options), path.name, 'picture in colour', 'one channel')
    path.unlink()
    refused(tools.train('cityscapes', tmp_path / 'run', options=options), path.name, 'no such label map')


def test_labels_that_were_not_converted(copied, tools, tmp_path):
    root, options = copied('cityscapes')
    for path in root.glob('gtFine/train/mini/*.png'):
        path.rename(path.with_name(path.name.replace('labelTrainIds', 'labelIds')))
    refused(tools.train('cityscapes', tmp_path / 'run', options=options), 'gtFine/train', 'labelTrainIds.png', 'dataset_converters')


def test_folders_in_another_layout(copied, tools, tmp_path):
    root, options = copied('imagenet')
    (root / 'train/another').mkdir()
    shutil.copy(last(root, PICTURE['imagenet']), root / 'train/another')
    refused(tools.train('imagenet', tmp_path / 'run', options=options), 'train', '6 class folders', '5 classes', 'metainfo')
    flat = tmp_path / 'flat'
    (flat / 'train').mkdir(parents=True)
    shutil.copy(last(root, PICTURE['imagenet']), flat / 'train')
    options['train_dataloader.dataset.data_root'] = str(flat)
    refused(tools.train('imagenet', tmp_path / 'run', options=options), 'flat/train', 'no class folders', '<split>/<class>/<picture>')


def test_every_file_is_opened_on_demand(copied, tools):
    root, _ = copied('coco')
    path = last(root, PICTURE['coco'])
    options = {f'{split}_dataloader.dataset.data_root': str(root) for split in ('train', 'val', 'test')}
    ann_file = str(root / 'annotations/instances_val2017.json')
    options |= {'val_evaluator.ann_file': ann_file, 'test_evaluator.ann_file': ann_file}
    status, error = tools.run('tools/preflight', tools.CONFIGS['coco'], options=options)
    assert status == 0, error
    path.write_text('hello')
    cfg = Config.fromfile(tools.CONFIGS['coco'])
    cfg.merge_from_dict(options)
    preflight.check_data(cfg, ('train',), sample=2)  # the first and the middle one
    refused(tools.run('tools/preflight', tools.CONFIGS['coco'], options=options), path.name)


def test_the_sample_is_spread_over_the_dataset():
    assert preflight._spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert preflight._spread([1, 2], 5) == [1, 2] and preflight._spread([1, 2], None) == [1, 2]


@pytest.fixture(scope='module')
def classifiers(tmp_path_factory):
    """Checkpoints of narrow classifiers that differ in their stems."""
    from mmpretrain.registry import MODELS

    folder = tmp_path_factory.mktemp('stems')
    for name, options in dict(deep_linear={}, plain=dict(plain_stem=True), v1c=dict(deep_stem=True), narrow=dict(stem_channels=8)).items():
        net = MODELS.build(dict(type='OREPAResNet', depth=18, **dict(dict(stem_channels=16, base_channels=16), **options)))
        torch.save(dict(state_dict={f'backbone.{key}': value for key, value in net.state_dict().items()}), folder / f'{name}.pth')
    return folder


@pytest.mark.parametrize(
    ('checkpoint', 'options', 'parts'),
    [
        ('deep_linear', {'conv_cfg.type': 'OREPAConv2d', 'conv_cfg.plain_sizes': (1, 7)}, ('deep linear stem', 'plain_stem=True')),
        ('plain', {}, ('its stem is a plain kernel', 'plain_stem=True')),
        ('v1c', {}, ('deep_stem=True',)),
        ('narrow', {}, ('of another shape', 'stem_channels')),
    ],
)
def test_stem_that_does_not_fit(checkpoint, options, parts, classifiers, tools, tmp_path):
    init = {'checkpoint': str(classifiers / f'{checkpoint}.pth'), 'type': 'Pretrained', 'prefix': 'backbone.'}
    options = {f'model.backbone.{key}': json.loads(json.dumps(value)) for key, value in options.items()}
    options |= {f'model.backbone.init_cfg.{key}': value for key, value in init.items()}
    refused(tools.train('coco', tmp_path, options=options), f'{checkpoint}.pth', 'stem', *parts)


def test_stems_that_fit(classifiers, tools, tmp_path):
    for checkpoint, plain_stem in (('deep_linear', False), ('deep_linear', True), ('plain', True)):
        init = {'checkpoint': str(classifiers / f'{checkpoint}.pth'), 'type': 'Pretrained', 'prefix': 'backbone.'}
        options = {f'model.backbone.init_cfg.{key}': value for key, value in init.items()}
        options['model.backbone.plain_stem'] = plain_stem
        work_dir = tmp_path / f'{checkpoint}{plain_stem}'
        status, error = tools.train('coco', work_dir, '--no-validate', options=options, iterations=1)
        assert status == 0, error
        assert ('backbone.conv1.weight' in torch.load(work_dir / 'last.pth', weights_only=False)['state_dict']) == plain_stem


def test_recipes_in_mixed_precision_need_a_gpu(tools, tmp_path):
    if torch.cuda.is_available():
        pytest.skip('asks for a machine without a GPU')
    config = 'configs/imagenet/orepa-resnet50_8xb256-rsb-a2-ema-amp-300e_in1k.py'
    refused(tools.run('tools/train', config, '--work-dir', tmp_path), 'mixed precision', 'optim_wrapper.type=OptimWrapper')


def test_cityscapes_metric_without_its_package(mini_data, tools, tmp_path, monkeypatch):
    from mmdet.evaluation.metrics import cityscapes_metric

    monkeypatch.setattr(cityscapes_metric, 'HAS_CITYSCAPESAPI', False)
    root = mini_data / 'cityscapes-mini'
    options = {'train_dataloader.dataset.dataset.data_root': str(root), 'val_dataloader.dataset.data_root': str(root), 'load_from': None}
    options |= {'val_evaluator.0.ann_file': str(root / 'annotations/instancesonly_filtered_gtFine_val.json')}
    result = tools.run(
        'tools/train', 'configs/cityscapes/mask-rcnn_orepa-r50_fpn_1x_cityscapes.py', '--work-dir', tmp_path, options=options
    )
    refused(result, 'pip install cityscapesscripts')
