"""Datasets and checkpoints that cannot be used are named, with the remedy, before training starts."""

import json
import re
import runpy
import shutil
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import preflight
import pytest
import torch
from conftest import ROOT, done, refused
from mmdet.registry import MODELS
from mmengine.config import Config
from PIL import ExifTags, Image
from test_tools import SCOPES

from orepa_mm.checkpoints.checking import check_pretrained
from orepa_mm.errors import CheckpointError, UsageError

PICTURE = dict(imagenet='train/circle/*.jpg', coco='train2017/*.jpg', cityscapes='leftImg8bit/train/mini/*.png')
PETS = ('cat', 'dog', 'fish')
LOAD = [dict(type='LoadImageFromFile')]
LABELLED = [*LOAD, dict(type='LoadAnnotations')]


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


# Through the tools: files that are damaged, missing or of another kind.


@pytest.mark.parametrize('name', SCOPES)
def test_pictures_that_cannot_be_read(name, copied, tools, tmp_path):
    root, options = copied(name)
    path = last(root, PICTURE[name])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(tools.train(name, tmp_path / 'run', options=options), path.name, 'cannot be read as a picture', 'copy it again')
    path.write_text('hello')
    refused(tools.train(name, tmp_path / 'run', options=options), path.name, 'cannot be read as a picture')
    if name == 'coco':
        path.unlink()
        refused(tools.train(name, tmp_path / 'run', options=options), path.name, 'no such picture', 'instances_train2017.json')
    assert not (tmp_path / 'run').exists()


def test_grayscale_pictures_train_where_the_pipeline_converts_them(copied, tools, tmp_path):
    root, options = copied('imagenet')
    for path in root.glob('train/*/*.jpg'):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    done(tools.train('imagenet', tmp_path / 'run', '--no-validate', options=options, iterations=1))
    options['train_dataloader.dataset.pipeline.0.color_type'] = 'unchanged'
    result = tools.train('imagenet', tmp_path / 'again', options=options)
    refused(result, str(root), 'loaded with 1 channel ', 'takes 3', "color_type='color'")


def test_label_maps_that_cannot_be_used(copied, tools, tmp_path):
    root, options = copied('cityscapes')
    path = last(root, 'gtFine/train/mini/*.png')
    outside = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    outside[3, 5] = 33
    for pixels, parts in (
        (outside, ('label 33', '19 classes', 'dataset_converters')),
        (np.zeros((64, 128, 3), np.uint8), ('picture in colour', 'one channel')),
        (np.zeros((32, 64), np.uint8), ('has 64 x 32 pixels', '128 x 64')),
        (None, ('no such label map',)),
    ):
        path.unlink() if pixels is None else cv2.imwrite(str(path), pixels)
        refused(tools.train('cityscapes', tmp_path / 'run', options=options), path.name, *parts)
    for path in root.glob('gtFine/train/mini/*.png'):  # that were not converted
        path.rename(path.with_name(path.name.replace('labelTrainIds', 'labelIds')))
    refused(tools.train('cityscapes', tmp_path / 'run', options=options), 'gtFine/train', 'labelTrainIds.png', 'dataset_converters')
    assert not (tmp_path / 'run').exists()


def test_folders_in_another_layout(copied, tools, tmp_path):
    root, options = copied('imagenet')
    (root / 'train/another').mkdir()
    shutil.copy(last(root, PICTURE['imagenet']), root / 'train/another')
    refused(tools.train('imagenet', tmp_path / 'run', options=options), 'train', '6 class folders', '5 classes', 'metainfo')
    (tmp_path / 'flat/train').mkdir(parents=True)
    shutil.copy(last(root, PICTURE['imagenet']), tmp_path / 'flat/train')
    options['train_dataloader.dataset.data_root'] = str(tmp_path / 'flat')
    refused(tools.train('imagenet', tmp_path / 'run', options=options), 'flat/train', 'no class folders', '<split>/<class>/<picture>')


def test_every_file_is_opened_on_demand(copied, tools):
    root, _ = copied('coco')
    options = {f'{split}_dataloader.dataset.data_root': str(root) for split in ('train', 'val', 'test')}
    options |= {f'{split}_evaluator.ann_file': str(root / 'annotations/instances_val2017.json') for split in ('val', 'test')}
    done(tools.run('tools/preflight', tools.CONFIGS['coco'], options=options))
    path = last(root, PICTURE['coco'])
    path.write_text('hello')
    cfg = Config.fromfile(tools.CONFIGS['coco'])
    cfg.merge_from_dict(options)
    preflight.check_data(cfg, ('train',), sample=2)  # the first and the middle one
    refused(tools.run('tools/preflight', tools.CONFIGS['coco'], options=options), path.name)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_the_check_can_be_left_out(tool, tools, tmp_path):
    options = {f'{tool}_dataloader.dataset.data_root': str(tmp_path / 'absent')}
    arguments = ('imagenet', tmp_path) if tool == 'train' else ('imagenet', tmp_path / 'none.pth', tmp_path)
    refused(getattr(tools, tool)(*arguments, options=options), 'absent', 'data_root')
    status, error = getattr(tools, tool)(*arguments, '--no-check-data', options=options)
    assert status != 0 and 'data_root' not in error and 'absent' in error, error  # the toolbox's own message


def test_metrics_of_every_kind_are_kept():
    as_json = runpy.run_path(str(ROOT / 'tools/test.py'))['as_json']
    metrics = dict(mAP=np.float32(0.5), top1=torch.tensor(95.0), classwise=(0.25, torch.tensor(1)), matrix=torch.eye(2), path=Path('x'))
    kept = dict(mAP=0.5, top1=95.0, classwise=[0.25, 1], matrix=[[1.0, 0.0], [0.0, 1.0]], path='x')
    assert json.loads(json.dumps(metrics, default=as_json)) == kept


def test_checkpoints_that_number_the_classes_in_another_way(trained, tools, tmp_path):
    checkpoint = torch.load(trained('imagenet', tools), weights_only=False)
    classes = checkpoint['meta']['dataset_meta']['classes']
    checkpoint['meta']['dataset_meta'] = dict(CLASSES=classes[::-1])
    torch.save(checkpoint, tmp_path / 'other.pth')
    refused(tools.test('imagenet', tmp_path / 'other.pth', tmp_path), f'"{classes[0]}" is class 0 in', 'and class 4 in', 'other.pth')
    torch.save(checkpoint | dict(meta=dict(dataset_meta=dict(CLASSES=[dict(id=1, name='person')]))), tmp_path / 'pose.pth')  # as mmpose
    assert preflight.classes_of(tmp_path / 'pose.pth') == {str(tmp_path / 'pose.pth'): []}


@pytest.mark.parametrize(
    ('stem', 'options', 'message'),
    [
        ({}, dict(conv_cfg=dict(type='OREPAConv2d', plain_sizes=(1, 7))), 'deep linear stem.*plain_stem=True'),
        (dict(stem_channels=16, plain_stem=True), dict(stem_channels=16), 'no product of stacked 3x3 kernels.*plain_stem=True'),
        (dict(deep_stem=True), {}, r'take ResNetV1c or V1d \(OREPAResNetV1c, OREPAResNetV1d\), or set deep_stem=True'),
        (dict(stem_channels=8), {}, 'of another shape.*stem_channels'),
        *((stem, options, '') for stem in ({}, dict(plain_stem=True)) for options in ({}, dict(plain_stem=True))),
    ],
)
def test_stems_of_pretrained_backbones(stem, options, message, tmp_path):
    narrow = dict(type='OREPAResNet', depth=18, stem_channels=32, base_channels=16)
    trained = MODELS.build(narrow | stem)
    torch.save({f'backbone.{key}': value for key, value in trained.state_dict().items()}, tmp_path / 'x.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'), prefix='backbone.')
    net = MODELS.build(narrow | options | dict(init_cfg=init_cfg))
    with pytest.raises(CheckpointError, match=f'x.pth: .*{message}') if message else nullcontext():
        check_pretrained(net)
    if not message:
        net.init_weights()
        assert ('conv1.weight' in net.state_dict()) == ('plain_stem' in options)
        assert torch.allclose(net.conv1.weight, trained.conv1.weight, atol=1e-6)


# What is certain to fail is refused, what may be meant is a warning, what the toolbox can load passes.


def draw(path: Path, *size: int) -> None:
    """A black picture, with its folder: height, width and channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros(size or (8, 8, 3), np.uint8))


def categories(*names: str) -> list[dict]:
    return [dict(id=i, name=name) for i, name in enumerate(names, 1)]


def change_file(path: Path, to: str = 'a.json', **content) -> None:
    """Write a JSON file anew, or beside it, with other content; None takes a part away."""
    content = json.loads(path.read_text()) | content
    (path.parent / to).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def coco(root: Path, names: tuple[str, ...] = PETS, image: dict | None = None, **content) -> dict:
    """A COCO dataset of one picture and its settings."""
    draw(root / 'train2017/a.jpg')
    images = [dict(id=1, height=8, width=8, **(image or dict(file_name='a.jpg')))]
    annotations = [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)]
    (root / 'a.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories(*names)) | content))
    prefix = dict(img='' if image else 'train2017')
    return dict(type='CocoDataset', data_root=str(root), ann_file='a.json', data_prefix=prefix, metainfo=dict(classes=names))


def label_maps(root: Path, names: tuple[str, ...] = PETS, kind: str = 'BaseSegDataset') -> dict:
    """A segmentation dataset of one picture and its settings."""
    draw(root / 'images/a.jpg')
    (root / 'labels').mkdir()
    cv2.imwrite(str(root / 'labels/a.png'), np.uint8([[0, 1], [255, 1]]).repeat(4, 0).repeat(4, 1))
    settings = dict(data_prefix=dict(img_path='images', seg_map_path='labels'), img_suffix='.jpg', seg_map_suffix='.png')
    return dict(type=kind, data_root=str(root), metainfo=dict(classes=names), **settings)


def check(scope: str, dataset: dict, model: dict | None = None, val: dict | None = None, **settings) -> list[str]:
    """Check a training set, and a validation set where one is given."""
    cfg = dict(default_scope=scope, model=model or {}, train_dataloader=dict(dataset=dataset), **settings)
    if val is not None:
        cfg |= dict(val_dataloader=dict(dataset=val | dict(test_mode=True)))
    return preflight.check_data(Config(cfg), ('train', 'val')[: 1 + (val is not None)])


def coco_sets(root: Path, names: tuple[str, ...] = PETS, val_file: dict | None = None, **evaluator) -> list[str]:
    """Check a training and a validation set of the classes ``names``, with what the validation file says otherwise."""
    evaluator = dict(type='CocoMetric', ann_file=str(root / 'val/a.json')) | evaluator
    given = dict(metainfo=dict(classes=names), pipeline=LOAD)
    train, val = (coco(root / split, PETS, **(val_file or {}) if split == 'val' else {}) | given for split in ('train', 'val'))
    return check('mmdet', train, val=val, val_evaluator=evaluator)


def heads(**counts: int) -> dict:
    return {name: dict(num_classes=count) for name, count in counts.items()}


@pytest.mark.parametrize(
    ('model', 'warned'),
    [
        (dict(roi_head=dict(bbox_head=[dict(num_classes=3)] * 3, mask_head=dict(num_classes=3), semantic_head=dict(num_classes=183))), ''),
        (dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=80, class_agnostic=True)), ''),
        (dict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=0)), ''),
        (dict(rpn_head=dict(num_classes=1), roi_head=dict(heads(bbox_head=3, glbctx_head=3), semantic_head=dict(num_classes=183))), ''),
        (dict(backbone=dict(depth=50)), ''),
        (dict(bbox_head=dict(num_classes=80)), 80),
        (dict(roi_head=heads(bbox_head=3, mask_head=80)), 80),
        (dict(roi_head=heads(bbox_head=3, mask_head=3, mask_iou_head=80)), 80),
        (dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=80)])), 80),
        (dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=0)), 80),
        (dict(detector=dict(roi_head=heads(bbox_head=80))), 80),
    ],
)
def test_class_counts_of_heads(model, warned, tmp_path, capsys):
    check('mmdet', coco(tmp_path), model)
    said = capsys.readouterr().err
    assert said.count('warning') == bool(warned)
    assert not warned or re.search(f'a.json has 3 classes, and the config says .*classes.*={warned}.*: right if', said)


def test_panoptic_heads_count_things_and_all(tmp_path, capsys):
    info = dict(classes=('cat', 'dog', 'sky'), thing_classes=('cat', 'dog'), stuff_classes=('sky',))
    annotations = [dict(image_id=1, file_name='a.png', segments_info=[dict(id=1, category_id=1, bbox=[1, 1, 4, 4], area=16)])]
    listed = [dict(category, isthing=1) for category in categories(*info['classes'])]
    dataset = coco(tmp_path, info['classes'], annotations=annotations, categories=listed)
    dataset |= dict(type='CocoPanopticDataset', metainfo=info)
    both = dict(num_things_classes=2, num_stuff_classes=1)
    check('mmdet', dataset, dict(roi_head=heads(bbox_head=2, mask_head=2), semantic_head=both, panoptic_fusion_head=both))
    assert not capsys.readouterr().err
    check('mmdet', dataset, dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=53)))
    assert 'num_things_classes + num_stuff_classes=133' in capsys.readouterr().err


def test_heads_of_segmentors(tmp_path, capsys):
    dataset = label_maps(tmp_path, PETS[:2])
    boundary = [dict(num_classes=2), dict(num_classes=2)]
    check('mmseg', dataset, dict(decode_head=dict(num_classes=2), auxiliary_head=boundary))
    assert 'warning' not in capsys.readouterr().err
    check('mmseg', dataset, heads(decode_head=1, auxiliary_head=19))
    assert 'decode_head.num_classes=1, model.auxiliary_head.num_classes=19: right if' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('changes', 'model'),
    [
        (dict(return_classes=True), dict(bbox_head=dict(num_classes=256))),  # a model that reads the names of the classes
        (dict(type='CocaDataset'), {}),  # the toolbox says so
        *((dict(pipeline=LOAD), dict(data_preprocessor=dict(mean=mean))) for mean in (127.5, [127.5], None)),  # for all channels
    ],
)
def test_what_fits(changes, model, tmp_path, capsys):
    check('mmdet', coco(tmp_path) | changes, model)
    assert not capsys.readouterr().err


def test_pictures_that_cv2_alone_opens_turns_or_refuses(tmp_path, monkeypatch):
    dataset = coco(tmp_path) | dict(pipeline=LOAD)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '63')
    with pytest.raises(UsageError, match='a.jpg: has 8 x 8 pixels'):
        check('mmdet', dataset)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '64')
    check('mmdet', dataset)
    cv2.imwrite(str(tmp_path / 'a.tif'), np.zeros((8, 8, 3), np.float64))
    (tmp_path / 'a.tif').replace(tmp_path / 'train2017/a.jpg')
    check('mmdet', dataset)
    # A camera held upright writes a lying picture, and says so; label maps lie as it is read.
    dataset = label_maps(tmp_path) | dict(pipeline=LABELLED)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new('RGB', (8, 4)).save(tmp_path / 'images/a.jpg', exif=exif)
    draw(tmp_path / 'labels/a.png', 8, 4)
    check('mmseg', dataset)
    draw(tmp_path / 'labels/a.png', 4, 8)
    with pytest.raises(UsageError, match='has 8 x 4 pixels, .* read with'):
        check('mmseg', dataset)


def test_pictures_only_the_toolbox_can_read(tmp_path):
    dataset = label_maps(tmp_path)
    (tmp_path / 'images/._a.jpg').write_text('left by another system')
    (tmp_path / 'images/a.jpg').write_text('another format')
    check('mmseg', dataset | dict(pipeline=[dict(type='LoadSpectra'), dict(type='LoadAnnotations')]))
    with pytest.raises(UsageError, match='a.jpg: cannot be read as a picture'):
        check('mmseg', dataset | dict(pipeline=LABELLED))
    Image.new('RGB', (8, 8)).save(tmp_path / 'images/a.tif')
    check('mmseg', dataset | dict(pipeline=LABELLED, img_suffix='.tif'))


def test_reduce_zero_label_moves_the_range(tmp_path):
    dataset = label_maps(tmp_path, kind='ADE20KDataset') | dict(metainfo=None)
    for highest in (150, 151):
        cv2.imwrite(str(tmp_path / 'labels/a.png'), np.uint8([[0, highest], [255, 1]]))
        if highest == 150:
            check('mmseg', dataset)
    with pytest.raises(UsageError, match='label 151.*150 classes: labels are 0 to 150'):
        check('mmseg', dataset)


def test_masks_of_0_and_255(tmp_path, capsys):
    dataset = label_maps(tmp_path)
    assert check('mmseg', dataset, val=dataset)[0] == f'{tmp_path}/images: 1 image, labels of 2 of 3 classes'
    assert 'labels: none of the 1 label maps opened has "fish"' in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / 'labels/a.png'), np.uint8([[0, 255]]).repeat(8, 0).repeat(4, 1))
    for ours, message in (({}, 'hold "cat" and 255'), (dict(reduce_zero_label=True), 'hold no class and 255')):
        with pytest.raises(UsageError, match=f'{message}, which is ignored.*with 0 and 1'):
            check('mmseg', dataset | ours, val=dataset | ours)


def test_label_maps_numbered_in_another_order(tmp_path):
    dataset = label_maps(tmp_path, ('road', 'sidewalk'), 'CityscapesDataset')
    with pytest.raises(UsageError, match='"road" is class 0 in .*train_dataloader, and class 1 in the classes of val_dataloader'):
        check('mmseg', dataset, val=dataset | dict(metainfo=dict(classes=('sidewalk', 'road'))))
    with pytest.raises(UsageError, match='"road" is class 0 in .*train_dataloader, and class 1 in x.pth'):
        cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))
        preflight.check_data(cfg, ('train',), others={'x.pth': ('sidewalk', 'road')})


def test_other_classes_for_a_dataset_with_classes_of_its_own(tmp_path):
    dataset = label_maps(tmp_path, ('road', 'pothole'), 'CityscapesDataset')
    with pytest.raises(UsageError, match="not a subset.*type='BaseSegDataset'.*palette.*255"):
        check('mmseg', dataset)
    check('mmseg', dataset | dict(type='BaseSegDataset'))
    check('mmseg', dataset | dict(metainfo=dict(classes=('road', 'sky'))))


def test_coco_files_and_their_pictures(tmp_path, capsys):
    """LVIS names pictures by address, test sets have no annotations, and classes may have none in the file."""
    dataset = coco(tmp_path, PETS, dict(coco_url='http://images.cocodataset.org/train2017/a.jpg')) | dict(type='LVISV1Dataset')
    check('mmdet', dataset, dict(bbox_head=dict(num_classes=3)))
    (tmp_path / 'train2017/a.jpg').unlink()
    with pytest.raises(UsageError, match='train2017/a.jpg: no such picture'):
        check('mmdet', dataset)
    dataset = coco(tmp_path)
    with pytest.raises(UsageError, match='CocoDataset cannot be built.*fliter_cfg'):
        check('mmdet', dataset | dict(fliter_cfg={}))
    check('mmdet', dataset | dict(metainfo=dict(classes=('cat', 'horse'))), dict(bbox_head=dict(num_classes=2)))
    assert 'warning: ' in (error := capsys.readouterr().err) and 'no category "horse"' in error
    change_file(tmp_path / 'a.json', annotations=None)
    check('mmdet', dataset | dict(test_mode=True))
    with pytest.raises(UsageError, match='"annotations" is a required'):
        check('mmdet', dataset)


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
    with pytest.raises(UsageError, match='absent.json: no such annotation file'):
        check('mmdet', dataset, train_evaluator=evaluator | dict(backend_args=dict(backend='local')))


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
    with pytest.raises(UsageError, match=message):
        coco_sets(tmp_path, **settings)


def test_metrics_judge_the_images_that_are_tested(tmp_path, capsys):
    assert coco_sets(tmp_path)[0] == f'{tmp_path}/train/a.json: 1 image, 1 box of 1 of 3 classes'
    (image,) = json.loads((tmp_path / 'val/a.json').read_text())['images']

    def against(*images: dict, **content) -> None:
        change_file(tmp_path / 'val/a.json', '../b.json', images=[image | other for other in images], **content)
        coco_sets(tmp_path, ann_file=str(tmp_path / 'b.json'))

    against({})
    assert not capsys.readouterr().err
    against({}, dict(id=2))
    assert 'b.json: 1 of its 2 images are not tested' in capsys.readouterr().err
    for other in (dict(file_name='b.jpg'), dict(width=16)):
        with pytest.raises(UsageError, match='b.json: is not of the images .*: image 1 is .* here, and in .*val/a.json a.jpg'):
            against(other)
    with pytest.raises(UsageError, match='b.json: not a COCO annotation file'):
        against({}, categories=None)


def test_results_that_are_sent_in_need_no_annotations(tmp_path):
    train = coco(tmp_path)
    change_file(tmp_path / 'a.json', 'b.json', annotations=None)
    val, evaluator = train | dict(ann_file='b.json'), dict(type='CocoMetric', ann_file=str(tmp_path / 'b.json'))
    check('mmdet', train, val=val, val_evaluator=dict(evaluator, format_only=True, outfile_prefix='x'))
    with pytest.raises(UsageError, match='"annotations" is a required'):
        check('mmdet', train, val=val, val_evaluator=[evaluator])


def test_pictures_without_labels(tmp_path, capsys):
    dataset = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=LOAD)
    draw(tmp_path / 'a.jpg')
    check('mmpretrain', dataset | dict(with_label=False), dict(head=dict(num_classes=5)))
    with pytest.raises(UsageError, match='no class folders'):
        check('mmpretrain', dataset)
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
    (tmp_path / 'a.jpg').rename(tmp_path / 'cat/a.jpg')
    check('mmpretrain', dataset, dict(head=dict(num_classes=2)))
    check('mmpretrain', dataset, dict(head=dict(num_classes=1000)))
    assert 'has 2 classes, and the config says model.head.num_classes=1000' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('train', 'val', 'classes', 'where'),
    [
        (('cat', 'dog', 'zebra'), ('Dog', 'cat', 'zebra'), None, 'train, and class 1 in .*val'),
        (('cat', 'dog'), ('ant', 'cat', 'dog'), None, 'train, and class 1 in .*val'),
        (('cat', 'dog'), ('cat', 'dog'), ('dog', 'cat'), 'train, and class 1 in the classes of train_dataloader'),
    ],
)
def test_folders_that_sort_differently(train, val, classes, where, tmp_path):
    for folder in (*(f'train/{name}' for name in train), *(f'val/{name}' for name in val)):
        draw(tmp_path / folder / 'a.jpg')
    given = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=LOAD, metainfo=classes and dict(classes=classes))
    with pytest.raises(UsageError, match=f'"cat" is class 0 in .*{where}'):
        check('mmpretrain', given | dict(data_prefix='train'), val=given | dict(data_prefix='val'))
