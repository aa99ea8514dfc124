"""Datasets and checkpoints that cannot be used are named, with the remedy, before training starts."""

import json
import re
import runpy
import shutil
from pathlib import Path

import cv2
import numpy as np
import preflight
import pytest
import torch
from mmengine.config import Config
from PIL import ExifTags, Image
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


def test_label_map_of_another_size(copied, tools, tmp_path):
    root, options = copied('cityscapes')
    path = last(root, 'gtFine/train/mini/*.png')
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint8))
    refused(tools.train('cityscapes', tmp_path / 'run', options=options), path.name, 'has 64 x 32 pixels', '128 x 64')


def test_labels_lie_as_their_pictures_are_read(tmp_path):
    """A camera held upright writes a lying picture, and says so; cv2 turns it."""
    dataset = label_maps(tmp_path, type='BaseSegDataset', metainfo=dict(classes=PETS)) | dict(
        pipeline=[*LOAD, dict(type='LoadAnnotations')]
    )
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new('RGB', (8, 4)).save(tmp_path / 'images/a.jpg', exif=exif)
    assert cv2.imread(str(tmp_path / 'images/a.jpg')).shape == (8, 4, 3)
    cv2.imwrite(str(tmp_path / 'labels/a.png'), np.zeros((8, 4), np.uint8))
    check('mmseg', dataset)
    cv2.imwrite(str(tmp_path / 'labels/a.png'), np.zeros((4, 8), np.uint8))
    with pytest.raises(preflight.UsageError, match='has 8 x 4 pixels, .* read with'):
        check('mmseg', dataset)


def test_labels_of_pictures_in_other_formats(tmp_path):
    dataset = label_maps(tmp_path, type='BaseSegDataset', metainfo=dict(classes=PETS), pipeline=[*LOAD, dict(type='LoadAnnotations')])
    (tmp_path / 'images/a.jpg').unlink()
    Image.new('RGB', (8, 8)).save(tmp_path / 'images/a.tif')
    cv2.imwrite(str(tmp_path / 'labels/a.png'), np.zeros((8, 8), np.uint8))
    check('mmseg', dataset | dict(img_suffix='.tif'))


def test_pictures_larger_than_opencv_opens(tmp_path, monkeypatch):
    dataset = coco(tmp_path, PETS) | dict(pipeline=LOAD)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '63')
    with pytest.raises(preflight.UsageError, match='a.jpg: has 8 x 8 pixels'):
        check('mmdet', dataset)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '64')
    check('mmdet', dataset)


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
    stems = dict(
        deep_linear={},
        plain=dict(plain_stem=True),
        v1c=dict(deep_stem=True),
        narrow=dict(stem_channels=8),
        narrow_plain=dict(stem_channels=16, plain_stem=True),
    )
    for name, options in stems.items():
        net = MODELS.build(dict(type='OREPAResNet', depth=18, **dict(dict(stem_channels=32, base_channels=16), **options)))
        torch.save(dict(state_dict={f'backbone.{key}': value for key, value in net.state_dict().items()}), folder / f'{name}.pth')
    return folder


@pytest.mark.parametrize(
    ('checkpoint', 'options', 'parts'),
    [
        ('deep_linear', {'conv_cfg.type': 'OREPAConv2d', 'conv_cfg.plain_sizes': (1, 7)}, ('deep linear stem', 'plain_stem=True')),
        ('narrow_plain', {'stem_channels': 16}, ('no product of stacked 3x3 kernels', 'plain_stem=True')),
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
    for checkpoint, plain_stem in (('deep_linear', False), ('deep_linear', True), ('plain', False), ('plain', True)):
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
    config = 'configs/cityscapes/mask-rcnn_orepa-r50_fpn_1x_cityscapes.py'
    with pytest.raises(RuntimeError, match='pip install cityscapesscripts'):
        tools.run('tools/train', config, '--work-dir', tmp_path, options=options)


# What is certain to fail is refused, what may be meant is a warning, what the toolbox can load passes.


def coco(root: Path, names: tuple[str, ...], image: dict | None = None, **content) -> dict:
    """A COCO dataset of one picture and its settings."""
    (root / 'train2017').mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / 'train2017' / 'a.jpg'), np.zeros((8, 8, 3), np.uint8))
    images = [dict(id=1, height=8, width=8, **(image or dict(file_name='a.jpg')))]
    annotations = [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)]
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    (root / 'a.json').write_text(json.dumps(dict(dict(images=images, annotations=annotations, categories=categories), **content)))
    prefix = dict(img='' if image else 'train2017')
    return dict(type='CocoDataset', data_root=str(root), ann_file='a.json', data_prefix=prefix, metainfo=dict(classes=names))


def label_maps(root: Path, **settings) -> dict:
    """A segmentation dataset of one picture and its settings."""
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    cv2.imwrite(str(root / 'images/a.jpg'), np.zeros((8, 8, 3), np.uint8))
    cv2.imwrite(str(root / 'labels/a.png'), np.uint8([[0, 1], [255, 1]]).repeat(4, 0).repeat(4, 1))
    suffixes = dict(img_suffix='.jpg', seg_map_suffix='.png')
    return dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='labels'), **suffixes, **settings)


def check(scope: str, dataset: dict, model: dict | None = None, **settings) -> None:
    cfg = Config(dict(default_scope=scope, model=model or {}, train_dataloader=dict(dataset=dataset), **settings))
    preflight.check_data(cfg, ('train',))


def heads(**counts: int) -> dict:
    return {name: dict(num_classes=count) for name, count in counts.items()}


PETS = ('cat', 'dog', 'fish')
LOAD = [dict(type='LoadImageFromFile')]


@pytest.mark.parametrize(
    'model',
    [
        dict(roi_head=dict(bbox_head=[dict(num_classes=3)] * 3, mask_head=dict(num_classes=3), semantic_head=dict(num_classes=183))),
        dict(rpn_head=dict(num_classes=1), roi_head=dict(bbox_head=dict(num_classes=3))),
        dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=80, class_agnostic=True)),
        dict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=0)),
        dict(roi_head=dict(heads(bbox_head=3, glbctx_head=3), semantic_head=dict(num_classes=183, in_channels=256))),
        dict(backbone=dict(depth=50)),
    ],
)
def test_heads_that_judge_something_else(model, tmp_path, capsys):
    check('mmdet', coco(tmp_path, PETS), model)
    assert 'warning' not in capsys.readouterr().err


@pytest.mark.parametrize(
    'model',
    [
        dict(bbox_head=dict(num_classes=80)),
        dict(roi_head=heads(bbox_head=80, mask_head=80)),
        dict(roi_head=heads(bbox_head=3, mask_head=80)),
        dict(roi_head=heads(bbox_head=80, mask_head=3)),
        dict(roi_head=heads(bbox_head=2, mask_head=3)),
        dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=80)])),
        dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=0)),
        dict(detector=dict(roi_head=heads(bbox_head=80))),
    ],
)
def test_classes_of_the_heads_were_not_changed(model, tmp_path, capsys):
    check('mmdet', coco(tmp_path, PETS), model)
    warning = capsys.readouterr().err
    assert warning.count('warning') == 1 and re.search('a.json has 3 classes, and the config says .*classes.*=(80|2)', warning)


def test_other_heads_with_another_count_are_a_warning(tmp_path, capsys):
    check('mmdet', coco(tmp_path, PETS), dict(roi_head=heads(bbox_head=3, mask_head=3, mask_iou_head=80)))
    warning = capsys.readouterr().err.splitlines()
    assert len(warning) == 1 and 'the config says model.roi_head.mask_iou_head.num_classes=80: right if' in warning[0]


def test_models_that_read_the_names_of_the_classes(tmp_path):
    check('mmdet', coco(tmp_path, PETS) | dict(return_classes=True), dict(bbox_head=dict(num_classes=256)))


def test_panoptic_heads_count_things_and_all(tmp_path, capsys):
    info = dict(classes=('cat', 'dog', 'sky'), thing_classes=('cat', 'dog'), stuff_classes=('sky',))
    dataset = coco(tmp_path, info['classes']) | dict(type='CocoPanopticDataset', metainfo=info)
    content = json.loads((tmp_path / 'a.json').read_text())
    content['annotations'] = [dict(image_id=1, file_name='a.png', segments_info=[dict(id=1, category_id=1, bbox=[1, 1, 4, 4], area=16)])]
    content['categories'] = [dict(category, isthing=1) for category in content['categories']]
    (tmp_path / 'a.json').write_text(json.dumps(content))
    both = dict(num_things_classes=2, num_stuff_classes=1)
    model = dict(roi_head=heads(bbox_head=2, mask_head=2), semantic_head=both, panoptic_fusion_head=both)
    check('mmdet', dataset, model)
    assert not capsys.readouterr().err
    check('mmdet', dataset, dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=53)))
    assert 'num_things_classes + num_stuff_classes=133' in capsys.readouterr().err


def test_lvis_names_pictures_by_address(tmp_path):
    dataset = coco(tmp_path, PETS, dict(coco_url='http://images.cocodataset.org/train2017/a.jpg')) | dict(type='LVISV1Dataset')
    check('mmdet', dataset, dict(bbox_head=dict(num_classes=3)))
    (tmp_path / 'train2017/a.jpg').unlink()
    with pytest.raises(preflight.UsageError, match='train2017/a.jpg: no such picture'):
        check('mmdet', dataset)


def test_test_sets_have_no_annotations(tmp_path):
    dataset = coco(tmp_path, PETS)
    content = json.loads((tmp_path / 'a.json').read_text())
    del content['annotations']
    (tmp_path / 'a.json').write_text(json.dumps(content))
    check('mmdet', dataset | dict(test_mode=True))
    with pytest.raises(preflight.UsageError, match='"annotations" is a required'):
        check('mmdet', dataset)


def test_some_classes_without_annotations_are_a_warning(tmp_path, capsys):
    check('mmdet', coco(tmp_path, PETS) | dict(metainfo=dict(classes=('cat', 'horse'))), dict(bbox_head=dict(num_classes=2)))
    assert 'warning: ' in (error := capsys.readouterr().err) and 'no category "horse"' in error


@pytest.mark.parametrize('where', ['dataset', 'pipeline', 'address'])
def test_remote_data_is_left_to_the_toolbox(where, tmp_path):
    backend = dict(backend='petrel', path_mapping={'data/': 's3://bucket/'})
    dataset = dict(type='CocoDataset', data_root='s3://coco' if where == 'address' else str(tmp_path / 'absent'), ann_file='a.json')
    if where == 'dataset':
        dataset['backend_args'] = backend
    elif where == 'pipeline':
        dataset['pipeline'] = [dict(type='LoadImageFromFile', backend_args=backend)]
    evaluator = dict(type='CocoMetric', ann_file='absent.json', backend_args=backend)
    check('mmdet', dataset, train_evaluator=evaluator)
    with pytest.raises(preflight.UsageError, match='absent.json: no such annotation file'):
        check('mmdet', dataset, train_evaluator=evaluator | dict(backend_args=dict(backend='local')))


def test_annotation_files_of_metrics(tmp_path):
    dataset, evaluator = coco(tmp_path, PETS), dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json'))
    check('mmdet', dataset, train_evaluator=evaluator)
    (tmp_path / 'b.json').write_text('{"images": []}')
    with pytest.raises(preflight.UsageError, match='b.json: not a COCO annotation file'):
        check('mmdet', dataset, train_evaluator=[dict(evaluator, ann_file=str(tmp_path / 'b.json'))])


def test_pictures_without_labels(tmp_path, capsys):
    dataset = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=LOAD)
    cv2.imwrite(str(tmp_path / 'a.jpg'), np.zeros((8, 8, 3), np.uint8))
    check('mmpretrain', dataset | dict(with_label=False), dict(head=dict(num_classes=5)))
    with pytest.raises(preflight.UsageError, match='no class folders'):
        check('mmpretrain', dataset)
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
    (tmp_path / 'a.jpg').rename(tmp_path / 'cat/a.jpg')
    check('mmpretrain', dataset, dict(head=dict(num_classes=2)))
    check('mmpretrain', dataset, dict(head=dict(num_classes=1000)))
    assert 'has 2 classes, and the config says model.head.num_classes=1000' in capsys.readouterr().err


def sets(cfg_scope: str, train: dict, val: dict, **settings) -> list[str]:
    cfg = dict(default_scope=cfg_scope, train_dataloader=dict(dataset=train), val_dataloader=dict(dataset=val | dict(test_mode=True)))
    return preflight.check_data(Config(cfg | settings), ('train', 'val'))


def coco_sets(root: Path, names: tuple[str, ...] = PETS, val_file: dict | None = None, **evaluator) -> list[str]:
    """Check a training and a validation set of the classes ``names``, with what the validation file says otherwise."""
    evaluator = dict(type='CocoMetric', ann_file=str(root / 'val/a.json')) | evaluator
    given = dict(metainfo=dict(classes=names), pipeline=LOAD)
    train, val = (coco(root / split, PETS, **(val_file or {}) if split == 'val' else {}) | given for split in ('train', 'val'))
    return sets('mmdet', train, val, val_evaluator=evaluator)


def categories(*names: str) -> list[dict]:
    return [dict(id=i, name=name) for i, name in enumerate(names, 1)]


def test_what_was_counted_is_said(tmp_path, tools, capsys):
    assert coco_sets(tmp_path)[0] == f'{tmp_path}/train/a.json: 1 image, 1 box of 1 of 3 classes'
    dataset = label_maps(tmp_path, type='BaseSegDataset', metainfo=dict(classes=PETS[:2]))
    assert sets('mmseg', dataset, dataset)[0] == f'{tmp_path}/images: 1 image, labels of 2 classes'
    assert 'warning' not in capsys.readouterr().err


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(names=PETS[::-1]), '"cat" is class 0 in .*train/a.json, and class 2 in the classes of train_dataloader'),
        (
            dict(val_file=dict(categories=categories('dog', 'cat', 'fish'))),
            '"cat" is class 0 in .*train/a.json, and class 1 in .*val/a.json',
        ),
        (dict(ann_file=None, val_file=dict(categories=categories('cat', 'fish'))), '"fish" is class 2 in .*train/a.json, and class 1 in'),
        (dict(val_file=dict(categories=categories('cat', 'dog'))), 'val/a.json: has no category "fish".*IndexError'),
        (dict(val_file=dict(images=[dict(id=1, file_name='a.jpg', width=4, height=8)])), r'read with \(8, 8\) .* says \(4, 8\)'),
    ],
    ids=['config', 'two files', 'gap', 'absent', 'size'],
)
def test_files_that_mean_something_else(settings, message, tmp_path):
    with pytest.raises(preflight.UsageError, match=message):
        coco_sets(tmp_path, **settings)


def test_metrics_judge_the_images_that_are_tested(tmp_path, capsys):
    content = json.loads((Path(coco(tmp_path, PETS)['data_root']) / 'a.json').read_text())

    def against(*images: dict) -> None:
        (tmp_path / 'b.json').write_text(json.dumps(content | dict(images=[dict(content['images'][0], **image) for image in images])))
        coco_sets(tmp_path, ann_file=str(tmp_path / 'b.json'))

    against({})
    against({}, dict(id=2))
    assert 'b.json: 1 of its 2 images are not tested' in capsys.readouterr().err
    for other in (dict(file_name='b.jpg'), dict(width=16)):
        with pytest.raises(preflight.UsageError, match='b.json: is not of the images .*: image 1 is .* here, and in .*val/a.json a.jpg'):
            against(other)


def test_results_that_are_sent_in_need_no_annotations(tmp_path):
    train = coco(tmp_path, PETS)
    content = json.loads((tmp_path / 'a.json').read_text())
    del content['annotations']
    (tmp_path / 'b.json').write_text(json.dumps(content))
    evaluator = dict(type='CocoMetric', ann_file=str(tmp_path / 'b.json'))
    sets('mmdet', train, train | dict(ann_file='b.json'), val_evaluator=dict(evaluator, format_only=True, outfile_prefix='x'))
    with pytest.raises(preflight.UsageError, match='"annotations" is a required'):
        sets('mmdet', train, train | dict(ann_file='b.json'), val_evaluator=evaluator)


@pytest.mark.parametrize(
    ('train', 'val', 'classes', 'where'),
    [
        (('cat', 'dog', 'zebra'), ('Dog', 'cat', 'zebra'), None, 'train, and class 1 in .*val'),
        (('cat', 'dog'), ('ant', 'cat', 'dog'), None, 'train, and class 1 in .*val'),
        (('cat', 'dog'), ('cat', 'dog'), ('dog', 'cat'), 'train, and class 1 in the classes of train_dataloader'),
    ],
)
def test_folders_that_sort_differently(train, val, classes, where, tmp_path):
    for path in (*(tmp_path / 'train' / name for name in train), *(tmp_path / 'val' / name for name in val)):
        path.mkdir(parents=True)
        cv2.imwrite(str(path / 'a.jpg'), np.zeros((8, 8, 3), np.uint8))
    given = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=LOAD, metainfo=classes and dict(classes=classes))
    with pytest.raises(preflight.UsageError, match=f'"cat" is class 0 in .*{where}'):
        sets('mmpretrain', given | dict(data_prefix='train'), given | dict(data_prefix='val'))


def test_masks_of_0_and_255(tmp_path, capsys):
    dataset = label_maps(tmp_path, type='BaseSegDataset', metainfo=dict(classes=PETS))
    sets('mmseg', dataset, dataset)
    assert 'labels: none of the 1 label maps opened has "fish"' in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / 'labels/a.png'), np.uint8([[0, 255]]).repeat(8, 0).repeat(4, 1))
    for ours, message in (({}, 'hold "cat" and 255'), (dict(reduce_zero_label=True), 'hold no class and 255')):
        with pytest.raises(preflight.UsageError, match=f'{message}, which is ignored.*with 0 and 1'):
            sets('mmseg', dataset | ours, dataset | ours)


def test_label_maps_numbered_in_another_order(tmp_path):
    dataset = label_maps(tmp_path, type='CityscapesDataset', metainfo=dict(classes=('road', 'sidewalk')))
    other = dataset | dict(metainfo=dict(classes=('sidewalk', 'road')))
    with pytest.raises(preflight.UsageError, match='"road" is class 0 in .*train_dataloader, and class 1 in the classes of val_dataloader'):
        sets('mmseg', dataset, other)
    with pytest.raises(preflight.UsageError, match='"road" is class 0 in .*train_dataloader, and class 1 in x.pth'):
        cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))
        preflight.check_data(cfg, ('train',), others={'x.pth': ('sidewalk', 'road')})


@pytest.mark.parametrize('mean', [127.5, [127.5], None])
def test_one_mean_for_all_channels(mean, tmp_path):
    dataset = coco(tmp_path, PETS) | dict(pipeline=LOAD)
    check('mmdet', dataset, dict(data_preprocessor=dict(mean=mean), bbox_head=dict(num_classes=3)))


@pytest.mark.parametrize('name', SCOPES)
def test_misspelled_dataset(name, tools, tmp_path):
    with pytest.raises(KeyError, match='CityskapesDataset is not in the'):  # as the stock scripts say it
        tools.train(name, tmp_path / 'run', options={'train_dataloader.dataset.type': 'CityskapesDataset'})


def test_misspelled_option_of_a_dataset(tmp_path):
    with pytest.raises(preflight.UsageError, match='CocoDataset cannot be built.*fliter_cfg'):
        check('mmdet', coco(tmp_path, PETS) | dict(fliter_cfg={}))


def test_other_classes_for_a_dataset_with_classes_of_its_own(tmp_path):
    dataset = label_maps(tmp_path, type='CityscapesDataset', metainfo=dict(classes=('road', 'pothole')))
    model = dict(decode_head=dict(num_classes=2))
    with pytest.raises(preflight.UsageError, match="not a subset.*type='BaseSegDataset'.*palette.*255"):
        check('mmseg', dataset, model)
    dataset['type'] = 'BaseSegDataset'
    check('mmseg', dataset, model)
    dataset['metainfo'] = dict(classes=('road', 'sky'))
    dataset['type'] = 'CityscapesDataset'
    check('mmseg', dataset, model)


def test_auxiliary_heads(tmp_path, capsys):
    dataset = label_maps(tmp_path, type='BaseSegDataset', metainfo=dict(classes=PETS[:2]))
    boundary = [dict(num_classes=2), dict(num_classes=2)]
    check('mmseg', dataset, dict(decode_head=dict(num_classes=2), auxiliary_head=boundary))
    assert 'warning' not in capsys.readouterr().err
    check('mmseg', dataset, heads(decode_head=1, auxiliary_head=19))
    assert 'decode_head.num_classes=1, model.auxiliary_head.num_classes=19: right if' in capsys.readouterr().err


def test_pictures_only_the_toolbox_can_read(tmp_path):
    dataset = label_maps(tmp_path, type='BaseSegDataset', metainfo=dict(classes=PETS))
    (tmp_path / 'images/._a.jpg').write_text('left by another system')
    (tmp_path / 'images/a.jpg').write_text('another format')
    check('mmseg', dataset | dict(pipeline=[dict(type='LoadSpectra'), dict(type='LoadAnnotations')]))
    with pytest.raises(preflight.UsageError, match='a.jpg: cannot be read as a picture'):
        check('mmseg', dataset | dict(pipeline=[*LOAD, dict(type='LoadAnnotations')]))


def test_sixteen_bit_colour_that_only_cv2_knows(tmp_path):
    dataset = coco(tmp_path, PETS) | dict(pipeline=LOAD)
    cv2.imwrite(str(tmp_path / 'a.tif'), np.zeros((8, 8, 3), np.float64))
    (tmp_path / 'a.tif').replace(tmp_path / 'train2017/a.jpg')
    check('mmdet', dataset)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_the_check_can_be_left_out(tool, tools, tmp_path):
    options = {f'{tool}_dataloader.dataset.data_root': str(tmp_path / 'absent')}
    arguments = ('imagenet', tmp_path) if tool == 'train' else ('imagenet', tmp_path / 'none.pth', tmp_path)
    refused(getattr(tools, tool)(*arguments, options=options), 'absent', 'data_root')
    status, error = getattr(tools, tool)(*arguments, '--no-check-data', options=options)
    assert status != 0 and 'data_root' not in error and 'absent' in error, error  # the toolbox's own message


def test_metrics_of_every_kind_are_kept():
    plain = runpy.run_path(str(Path(preflight.__file__).parent / 'test.py'))['plain']
    metrics = dict(mAP=np.float32(0.5), top1=torch.tensor(95.0), count=3, classwise=[0.25, torch.tensor(1)], matrix=torch.eye(2))
    kept = dict(mAP=0.5, top1=95.0, count=3.0, classwise=[0.25, 1.0], matrix=[[1.0, 0.0], [0.0, 1.0]])
    assert json.loads(json.dumps(plain(metrics))) == kept and type(plain(metrics)['count']) is float
    assert plain(dict(precision=np.arange(2), none=None, note='x')) == dict(precision=[0.0, 1.0], none=None, note='x')


def test_checkpoints_that_number_the_classes_in_another_way(trained, tools, tmp_path):
    checkpoint = torch.load(trained('imagenet', tools), weights_only=False)
    classes = checkpoint['meta']['dataset_meta']['classes']
    checkpoint['meta']['dataset_meta'] = dict(CLASSES=classes[::-1])
    torch.save(checkpoint, tmp_path / 'other.pth')
    refused(tools.test('imagenet', tmp_path / 'other.pth', tmp_path), f'"{classes[0]}" is class 0 in', 'and class 4 in', 'other.pth')
