"""ONNX files predict what the training form's stock code predicts, on pictures, at several sizes; whatever cannot be exported is named."""

import importlib
import importlib.util
import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import quantize_onnx
import run_onnx
import torch
from conftest import ROOT, done, few, fill_disk, python, refused
from mmengine.config import Config
from mmengine.utils import digit_version
from PIL import Image
from small_models import CONFIGS, config, path_of, pictures, save_weights, stock
from torch import nn

from orepa_mm.deploy import agreement
from orepa_mm.deploy.agreement import differing_labels, match
from orepa_mm.deploy.batches import input_channels, random_batch
from orepa_mm.deploy.export import export, table
from orepa_mm.deploy.loading import build_model
from orepa_mm.deploy.metadata import fixed_preparation, metadata, preparation
from orepa_mm.deploy.networks import boxes, deploy_network
from orepa_mm.deploy.networks.picture import PictureInput
from orepa_mm.deploy.networks.pooling import AdaptiveAveragePool
from orepa_mm.deploy.pictures import pictures_in, read_picture
from orepa_mm.deploy.quantize import OnnxNetwork, quantize
from orepa_mm.deploy.stock_model import to_stock_model
from orepa_mm.errors import ExportError

OUTPUTS = dict(classifier=['scores'], pspnet=['logits'], deeplabv3plus=['logits'], retinanet=['boxes', 'scores', 'labels'])
OUTPUTS['maskrcnn'] = [*OUTPUTS['retinanet'], 'masks']
# Fewer pyramid levels, as the exporter's time goes into the formulas of their sizes; the tests marked slow have all.
SHORT = dict(
    retinanet=dict(model__test_cfg__score_thr=0.3, model__neck__num_outs=3, model__bbox_head__anchor_generator__strides=[8, 16, 32]),
    maskrcnn=dict(
        model__test_cfg__rcnn__score_thr=0.02, model__neck__num_outs=4, model__rpn_head__anchor_generator__strides=[4, 8, 16, 32]
    ),
)
FRAMEWORKS = 'torch,torchvision,mmengine,mmcv,mmdet,mmseg,mmpretrain,orepa_mm,cv2,onnx,common,files'
run_alone = partial(python, ROOT / 'tests' / 'alone.py', FRAMEWORKS, ROOT / 'tools' / 'deploy' / 'run_onnx.py')


def said_alone(*args) -> str:
    result = run_alone(*args)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """The path of a model's checkpoint; made on first use."""
    folder, made = tmp_path_factory.mktemp('weights'), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = save_weights(config(name, **SHORT.get(name, {})), folder / f'{name}.pth')
        return made[name]

    return get


@pytest.fixture
def exported(exporter, checkpoint, mini_data, tmp_path):
    """Writes ``x.onnx`` of a model; the rows of what was compared."""

    def go(name: str, settings: dict | None = None, out: str = 'x.onnx', **options) -> list:
        cfg = config(name, **SHORT.get(name, {}) | (settings or {}))
        return list(export(cfg, checkpoint(name), tmp_path / out, pictures=pictures(name, mini_data), calls=1, **options))

    return go


def load(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


def blank(*size: int) -> dict:
    return dict(picture=np.zeros((1, 3, *size), np.uint8))


@pytest.mark.parametrize('name', few(CONFIGS, 'classifier'))
def test_any_size(name, exported, checkpoint, mini_data, tmp_path):
    """One export, so one test: agreement at four sizes, what the file says, and a run without torch."""
    if name == 'classifier' and digit_version(torch.__version__) < digit_version('2.8'):
        pytest.skip('torch 2.7 traces no classifier for pictures of any size')
    rows, path, folder = exported(name, dynamic=True), tmp_path / 'x.onnx', pictures(name, mini_data)
    assert len({row.size for row in rows}) == 4 and max(row.size[0] for row in rows) > rows[0].size[0]
    assert all(row.agreement.problem == '' and row.agreement.largest < 1e-4 for row in rows)
    assert len(table(rows).splitlines()) == 6
    if name in SHORT:
        found = [row.agreement.found for row in rows]
        assert sum(int(text.partition(' of ')[0].split()[-1]) for text in found) > 20, found  # boxes that were matched

    session = load(path)
    (picture,) = session.get_inputs()
    assert picture.type == 'tensor(uint8)' and picture.shape[2:] == ['height', 'width']
    assert [output.name for output in session.get_outputs()] == OUTPUTS[name]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts['classes']) == ['a', 'b'] and json.loads(facts['prepare'])[0]['step'] == 'resize'
    assert facts['checkpoint'] == checkpoint(name).name and len(facts['checkpoint_sha256']) == 64
    content = path.read_bytes()
    assert str(tmp_path).encode() not in content and b'site-packages' not in content
    assert not any(tensor.external_data for tensor in onnx.load_from_string(content).graph.initializer)

    first, second = sorted(file for file in folder.rglob('*') if file.is_file())[:2]
    said = said_alone(path, first, second, '--out-dir', tmp_path / 'drawn', '--score-thr', 0.1)
    assert said.startswith(f'{first}\n') and len(said.splitlines()) >= 4
    with Image.open(tmp_path / 'drawn' / f'{first.stem}.png') as drawn, Image.open(first) as before:
        assert drawn.size == before.size
        assert (np.asarray(drawn).astype(int) != np.asarray(before)).any()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['classifier', 'retinanet'])
def test_compiled_packages(name, exported, tmp_path):
    """Of one size, with weights frozen and, where the graph has tensors of its own, not."""
    rows = exported(name, out='model.pt2', file_format='pt2')
    assert len(rows) == 4 and all(row.agreement.problem == '' and row.agreement.largest < 1e-4 for row in rows)
    assert set(rows[0].milliseconds) == {'training form', 'eager', 'AOTInductor'}
    model = torch._inductor.aoti_load_package(str(tmp_path / 'model.pt2'))
    assert model.get_metadata()['task'] == ('classification' if name == 'classifier' else 'detection')
    assert len(model(torch.zeros(1, 3, *rows[0].size, dtype=torch.uint8))) == len(OUTPUTS[name])


@pytest.mark.parametrize('size', [(1, 1), (5, 7), (16, 9), (33, 64)])
@pytest.mark.parametrize('output', [1, 2, 3, 6, (4, None), (None, 3)])
def test_adaptive_pool_is_torch_s(size, output):
    x = torch.randn(2, 3, *size)
    rows, columns = output if isinstance(output, tuple) else (output, output)
    torch.testing.assert_close(AdaptiveAveragePool(rows, columns)(x), nn.AdaptiveAvgPool2d(output)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rgb', [True, False])
@pytest.mark.parametrize('kind', ['mmpretrain', 'mmdet', 'mmseg', 'none'])
def test_a_picture_becomes_what_the_preprocessor_makes_of_it(kind, rgb):
    from mmdet.models import DetDataPreprocessor
    from mmpretrain.models import ClsDataPreprocessor
    from mmseg.models import SegDataPreProcessor
    from mmseg.structures import SegDataSample

    norm = dict(mean=[1.0, 20.0, 300.0], std=[2.0, 30.0, 4.0])
    preprocessor = dict(
        mmpretrain=lambda: ClsDataPreprocessor(**norm, to_rgb=rgb),
        mmdet=lambda: DetDataPreprocessor(**norm, bgr_to_rgb=rgb, pad_size_divisor=32, pad_value=7),
        mmseg=lambda: SegDataPreProcessor(**norm, bgr_to_rgb=rgb, pad_val=3, size=(8, 8), test_cfg=dict(size_divisor=16)),
        none=lambda: DetDataPreprocessor(bgr_to_rgb=rgb),
    )[kind]()
    picture = torch.randint(0, 256, (1, 3, 37, 50), dtype=torch.uint8)
    batch = dict(inputs=[picture[0].flip(0)], data_samples=[SegDataSample()])
    assert torch.equal(PictureInput(preprocessor)(picture), preprocessor(batch, False)['inputs'])


def other_channels(name: str, channels: int) -> Config:
    """A small config for pictures of one or four channels."""
    cfg = config(name, model__backbone__in_channels=channels, model__backbone__plain_stem=channels == 4)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    values = channels if name == 'classifier' else 1  # for all channels
    preprocessor.update(mean=[10.0, 20, 30, 40][:values], std=[5.0, 6, 7, 8][:values])
    for key in ('bgr_to_rgb', 'to_rgb'):
        preprocessor.pop(key, None)
    return cfg


@pytest.mark.parametrize(('name', 'channels'), [('classifier', 1), ('classifier', 4), ('pspnet', 4), ('retinanet', 1)])
def test_pictures_of_other_channels(name, channels, mini_data, tmp_path):
    cfg = other_channels(name, channels)
    model = build_model(cfg).eval()
    network = deploy_network(deepcopy(model))
    file = next(file for file in pictures(name, mini_data).rglob('*') if file.is_file())
    picture = read_picture(file, (128, 160), channels)
    assert picture.shape == (1, channels, 128, 160)
    with torch.no_grad():
        found = agreement.compare(model, network, network, picture)
        assert found.problem == '' and found.largest is not None
    (tmp_path / 'x.pth').touch()
    facts = metadata(cfg, network, tmp_path / 'x.pth', *preparation(cfg, channels))
    assert facts['channels'] == ('grey' if channels == 1 else 'BGRA') and f'[N, {channels}, H, W]' in facts['input']
    pad = fixed_preparation([dict(step='resize', scale=[96, 64], keep_ratio=True)], (64, 96), network)[-1]
    assert pad['value'] == ([10, 20, 30, 40][:channels] if name == 'classifier' else [10] * channels)
    assert input_channels(model) == channels and max(to_stock_model(cfg, model, [random_batch(cfg, channels)]).differences.values()) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures('exporter')
@pytest.mark.parametrize('channels', [1, 4])
def test_files_for_other_channels(channels, mini_data, tmp_path):
    cfg, path = other_channels('pspnet', channels), tmp_path / 'x.onnx'
    torch.save(build_model(cfg).state_dict(), tmp_path / 'x.pth')
    folder = pictures('pspnet', mini_data)
    list(export(cfg, tmp_path / 'x.pth', path, size=(64, 96), pictures=folder, calls=1))
    (picture,) = load(path).get_inputs()
    assert picture.shape == [1, channels, 64, 96]
    assert '%' in said_alone(path, next(folder.rglob('*.png')), '--out-dir', tmp_path / 'drawn')
    pixels = [quantize_onnx.prepared(OnnxNetwork(path), file) for file in pictures_in(folder, 2)]
    assert OnnxNetwork(quantize(path, pixels))(pixels[0]).shape == OnnxNetwork(path)(pixels[0]).shape


def test_probabilities_of_one_size_from_float_pictures(exported, tmp_path):
    rows = exported('classifier', size=(48, 80), softmax=True, float_input=True)
    path, wide = tmp_path / 'x.onnx', tmp_path / 'wide.png'
    assert {row.size for row in rows} == {(48, 80)} and len({row.pictures[0] for row in rows}) == 4
    (scores,) = load(path).run(None, {'picture': blank(48, 80)['picture'].astype(np.float32)})
    assert load(path).get_modelmeta().custom_metadata_map['input'].startswith('float32 (0 to 255) pictures [N, 3')
    assert scores.sum() == pytest.approx(1, abs=1e-5) and scores.min() > 0
    with pytest.raises(Exception, match='invalid dimensions'):
        load(path).run(None, {'picture': np.zeros((1, 3, 64, 80), np.float32)})
    Image.new('RGB', (300, 40)).save(wide)
    assert '\n  0.' in said_alone(path, wide, '--out-dir', tmp_path)


def test_label_maps(exported, mini_data, tmp_path):
    rows = exported('pspnet', size=(96, 160), labels=True)
    assert all(row.agreement.largest is None and '0.0000%' in row.agreement.found for row in rows)
    (labels,) = load(tmp_path / 'x.onnx').run(None, blank(96, 160))
    assert labels.dtype == np.int64 and labels.shape == (1, 96, 160)
    picture = next(pictures('pspnet', mini_data).rglob('*.png'))
    assert '%' in said_alone(tmp_path / 'x.onnx', picture, '--out-dir', tmp_path / 'drawn')


@pytest.mark.slow
def test_nothing_is_found(exported, mini_data, tmp_path):
    rows = exported('maskrcnn', dict(model__test_cfg__rcnn__score_thr=0.9999), size=(128, 160))
    assert [row.agreement.found for row in rows] == ['0 boxes, 0 of 0 matched'] * 4
    outputs = load(tmp_path / 'x.onnx').run(None, blank(128, 160))
    assert [output.shape for output in outputs] == [(0, 4), (0,), (0,), (0, 28, 28)]
    picture = next(pictures('maskrcnn', mini_data).iterdir())
    assert '0 of 0 boxes' in said_alone(tmp_path / 'x.onnx', picture, '--out-dir', tmp_path)


@pytest.mark.parametrize('most', [100, -1])
def test_suppression_of_many_classes(most, monkeypatch):
    """As mmcv's, which goes through the classes one by one where there are many boxes; here the best are looked at."""
    from mmcv.ops import batched_nms

    monkeypatch.setattr(boxes, 'CANDIDATES', 400)
    corners = 1000 * torch.rand(3000, 2)
    given = torch.cat([corners, corners + 100 * torch.rand(3000, 2)], 1), torch.rand(3000), torch.randint(0, 50, (3000,))
    _, expected = batched_nms(*given, dict(type='nms', iou_threshold=0.5, split_thr=1000))
    assert torch.equal(boxes.Suppression(dict(type='nms', iou_threshold=0.5), most)(*given), expected[: most if most > 0 else None])


class TestAgreement:
    """What the check lets pass, on predictions made by hand."""

    @pytest.mark.parametrize(
        ('change', 'most', 'said'),
        [
            ({}, 100, '3 boxes, 3 of 3 matched'),
            (dict(boxes=(0, 0.02)), 100, '1 of 3 boxes are missing and 1 are added'),
            (dict(scores=(0, 2e-4)), 100, '1 of 3 boxes are missing and 1 are added'),
            (dict(labels=(0, 1)), 100, '1 of 3 boxes are missing and 1 are added'),
            (lambda value: value[1:], 100, '1 of 3 boxes are missing and 0 are added'),
            (lambda value: torch.cat([value, value[:1]]), 100, '0 of 3 boxes are missing and 1 are added'),
            (lambda value: value[:2], 100, '2 boxes, 2 of 3 matched, 1 tie'),  # the third is at the threshold
            (dict(boxes=(2, 5)), 3, '3 boxes, 2 of 3 matched, 2 tie'),  # the last of as many as are kept may be another
            (dict(boxes=(2, 5), scores=(2, 0.2)), 3, '0 of 3 boxes are missing and 1 are added'),  # 0.25 is no tie with 0.05
        ],
    )
    def test_boxes(self, change, most, said, monkeypatch):
        boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [21, 20, 40, 40]])
        stock = SimpleNamespace(bboxes=boxes, scores=torch.tensor([0.9, 0.8, 0.05001]), labels=torch.tensor([0, 1, 2]))
        monkeypatch.setattr(agreement, 'stock_predictions', lambda model, x: [SimpleNamespace(pred_instances=stock)])
        outputs = dict(boxes=boxes.clone(), scores=stock.scores.clone(), labels=stock.labels.clone())
        if callable(change):
            outputs = {key: change(value) for key, value in outputs.items()}
        else:
            for name, (index, amount) in change.items():
                outputs[name][index] += amount
        network = SimpleNamespace(task='detection', score_threshold=0.05, most=most)
        result = agreement.compare(None, network, lambda x: tuple(outputs.values()), torch.zeros(1, 3, 50, 100))
        assert (result.problem or result.found) == said and (change or result.largest == 0)

    def test_boxes_of_one_place_are_told_apart(self):
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 11, 10]])
        pairs = match(boxes, torch.tensor([0, 1, 0]), boxes[[2, 1, 0]], torch.tensor([0, 1, 0]))
        assert pairs.tolist() == [[0, 2], [1, 1], [2, 0]]
        assert match(boxes, torch.tensor([0, 1, 0]), boxes[:0], torch.tensor([])).shape == (0, 2)

    def test_ties_are_told_from_wrong_labels(self):
        scores = torch.tensor([[1.0, 1.0 - 1e-6, 0.0], [1.0, 0.5, 0.0]])
        assert differing_labels(scores, torch.tensor([0, 0])) == (0, 0)
        assert differing_labels(scores, torch.tensor([1, 0])) == (1, 0)
        assert differing_labels(scores, torch.tensor([1, 1])) == (2, 1)


ROI_POOL = dict(_delete_=True, type='RoIPool', output_size=14)


class TestRefused:
    @pytest.mark.parametrize(
        ('name', 'options', 'message'),
        [
            ('pspnet', dict(model__test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32))), 'model.test_cfg.mode=whole'),
            ('retinanet', dict(model__test_cfg__nms=dict(type='soft_nms', iou_threshold=0.5)), 'not soft_nms'),
            ('maskrcnn', dict(model__test_cfg__rcnn__nms=dict(type='nms', iou_threshold=0.5, max_num=3)), 'not max_num'),
            ('maskrcnn', dict(model__test_cfg__rpn__nms=dict(type='soft_nms')), 'not soft_nms'),
            ('maskrcnn', dict(model__roi_head__mask_roi_extractor__roi_layer=ROI_POOL), 'RoIPool'),
        ],
    )
    def test_settings(self, name, options, message):
        model = build_model(config(name, **options)).eval()
        with pytest.raises(ExportError, match=message) as error:
            deploy_network(model)
        assert '\n' not in str(error.value)

    @pytest.mark.parametrize(
        ('path', 'message'),
        [
            ('gfl/gfl_r50_fpn_1x_coco', 'GFLHead: makes boxes in a way of its own'),
            ('detr/detr_r50_8xb2-150e_coco', 'DETR: is no detector with one dense head'),
            ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', 'PanopticFPN: makes boxes in a way of its own'),
            ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco', 'FastRCNN: has no proposals of its own'),
            ('ssd/ssd300_coco', 'SSDHead with NoneType as loss_cls'),
            ('solo/solo_r50_fpn_1x_coco', 'SOLO: is no detector with one dense head'),
        ],
    )
    def test_kinds_of_detectors(self, path, message):
        cfg = stock('mmdet', path)
        cfg.model.backbone.init_cfg = None
        if 'ssd' not in path:
            cfg.model.backbone.depth = 18
            cfg.model.neck.in_channels = [512] if 'detr' in path else [64, 128, 256, 512]
        with pytest.raises(ExportError, match=message):
            deploy_network(build_model(cfg).eval())

    def test_options_of_other_tasks_and_not_a_head_s_way_to_train(self):
        for name, option in (('classifier', 'labels'), ('pspnet', 'softmax'), ('retinanet', 'softmax'), ('maskrcnn', 'labels')):
            with pytest.raises(ExportError, match=f'--{option} is for'):
                deploy_network(build_model(config(name)).eval(), **{option: True})
        deploy_network(build_model(config('maskrcnn', model__roi_head__type='PISARoIHead')).eval())  # trains in another way only


@pytest.mark.usefixtures('exporter')
class TestCommandLine:
    @pytest.fixture
    def run(self, tools, checkpoint, mini_data, tmp_path):
        folder = pictures('classifier', mini_data)

        def go(*args, weights=None, out='x.onnx', given=('--pictures', folder), **options):
            options = {key.replace('__', '.'): value for key, value in options.items()}
            arguments = (path_of('classifier'), weights or checkpoint('classifier'), tmp_path / out, *given, *args)
            return tools.run('tools/deploy/export_onnx', *arguments, options=options)

        return go

    def test_writes_and_overwrites_when_told(self, run, mini_data, tmp_path):
        (tmp_path / 'x.onnx').write_bytes(b'old')
        refused(run(given=()), '--force')
        refused(run('--force', given=(), test_dataloader__dataset__data_root='nowhere'), '--pictures FOLDER')
        refused(run('--force', given=('--pictures', 'nowhere')), 'no such folder')
        refused(run('--force', given=('--pictures', ROOT / 'requirements')), 'no picture in it')
        (tmp_path / 'damaged').mkdir()
        (tmp_path / 'damaged' / 'x.png').write_text('text')
        refused(run('--force', given=('--pictures', tmp_path / 'damaged')), 'x.png: cannot be read as a picture')
        assert (tmp_path / 'x.onnx').read_bytes() == b'old'
        done(run('--force', given=(), test_dataloader__dataset__data_root=str(mini_data / 'imagenet-mini')))
        load(tmp_path / 'x.onnx')
        assert sorted(file.name for file in tmp_path.iterdir()) == ['damaged', 'x.onnx']

    def test_bad_options(self, run, checkpoint):
        refused(run('--dynamic', '--size', 32, 64), '32 x 64 is too small', 'below 33 x 33')
        refused(run('--size', 0, 64), '1 to 4096')
        refused(run('--size', 64, 5000), '1 to 4096')
        refused(run('--opset', 17), '--opset 17', '18 is the oldest')
        refused(run('--opset', 99), '--opset 99')
        refused(run('--ema'), 'no EMAHook')
        refused(run(weights=checkpoint('pspnet')), 'pspnet.pth')
        refused(run(weights='nowhere.pth'), 'no such checkpoint file')
        refused(run(out='.'), 'no ordinary file')

    def test_what_is_missing(self, run, monkeypatch):
        monkeypatch.setattr('shutil.which', lambda name: None)
        refused(run('--format', 'pt2', out='x.pt2'), 'needs a C++ compiler')
        find_spec = importlib.util.find_spec
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, 'find_spec', lambda name, *args: None if name == 'onnxscript' else find_spec(name, *args))
            refused(run(), 'onnxscript missing', "pip install 'orepa_mm[deploy]'")
        monkeypatch.setattr(torch, '__version__', '2.6.0+cpu')
        refused(run(), 'torch 2.6.0+cpu trains, but cannot export', 'torch 2.7')

    @pytest.mark.parametrize('failure', ['disk', 'difference'])
    def test_what_fails_leaves_the_old_file(self, failure, run, tmp_path, monkeypatch):
        (tmp_path / 'x.onnx').write_bytes(b'old')

        def other(model, *args):
            model.head.fc.weight.data[0, 0] += 0.1
            return deploy_network(model, *args)

        if failure == 'disk':
            fill_disk(tmp_path, monkeypatch)
            refused(run('--force'), 'No space left on device')
        else:
            monkeypatch.setattr('orepa_mm.deploy.export.deploy_network', other)
            refused(run('--force'), 'does not predict what the training form does')
        assert [file.name for file in tmp_path.iterdir()] == ['x.onnx']
        assert (tmp_path / 'x.onnx').read_bytes() == b'old'


class TestRunAlone:
    """The script that is copied beside the model prepares pictures and pastes masks as the toolboxes do."""

    @pytest.mark.parametrize('size', [(50, 90), (120, 70), (300, 300)])
    @pytest.mark.parametrize(
        'pipeline',
        [
            [dict(type='Resize', scale=(133, 80), keep_ratio=True)],
            [dict(type='Resize', scale=(64, 48), keep_ratio=False)],
            [dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='Pad', size=(64, 64), pad_val=dict(img=(1, 2, 3)))],
            [dict(type='mmpretrain.ResizeEdge', scale=41, edge='short'), dict(type='mmpretrain.CenterCrop', crop_size=32)],
            [dict(type='mmpretrain.ResizeEdge', scale=60, edge='long', backend='pillow')],
        ],
        ids=['keep ratio', 'scale', 'pad', 'short edge and crop', 'long edge, Pillow'],
    )
    def test_prepares_as_the_pipeline_does(self, pipeline, size):
        import mmdet.datasets  # noqa: F401
        import mmpretrain.datasets  # noqa: F401
        from mmcv.transforms import Compose
        from mmengine.registry import init_default_scope

        init_default_scope('mmdet')
        rgb = np.array(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).resize(size[::-1]))
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        expected = Compose(pipeline)(dict(img=bgr, img_shape=size))['img'][..., ::-1]
        steps, others = preparation(Config(dict(test_pipeline=pipeline)))
        picture, inside = run_onnx.prepare(Image.fromarray(rgb), steps)
        assert others == [] and picture.size == expected.shape[1::-1]
        assert inside[0] <= picture.width and inside[1] <= picture.height
        assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1  # OpenCV rounds in between

    def test_answers_without_a_largest_channel(self, capsys):
        """Foreground begins at the threshold, and several labels have probabilities of their own."""

        class Model(run_onnx.Model):
            steps, palette = [], []

            def __init__(self, classes, found: dict, **facts):
                self.classes, self.found, self.facts = classes, found, facts

            def __call__(self, picture):
                return self.found

        logits, picture = dict(logits=np.float32([-1, -0.5, 1, 2]).reshape(1, 1, 2, 2)), Image.new('RGB', (2, 2))
        for facts, share in (({}, '75.0%  road'), (dict(threshold='0.5'), '50.0%  road'), (dict(threshold='0.9'), '')):
            run_onnx.segment(Model(['else', 'road'], logits, **facts), picture, None)
            said = capsys.readouterr().out
            assert share in said and ('road' in said) == bool(share)
        run_onnx.classify(Model('abc', dict(scores=np.float32([[3, 0, 2]])), scores='sigmoid logits'), picture, None)
        assert capsys.readouterr().out.split() == ['0.953', 'a', '0.881', 'c', '0.500', 'b']

    def test_classes_for_types(self):
        from mmcv.transforms import CenterCrop, LoadImageFromFile, Pad, RandomFlip, Resize
        from mmpretrain.datasets import PackInputs, ResizeEdge

        steps = [dict(type=LoadImageFromFile), dict(type=Resize, scale=(9, 8)), dict(type=ResizeEdge, scale=7), dict(type=RandomFlip)]
        steps += [dict(type=CenterCrop, crop_size=6), dict(type=Pad, size=(5, 5)), dict(type=PackInputs)]
        found, others = preparation(Config(dict(test_pipeline=steps)))
        named = [dict(step, type=step['type'].__name__) for step in steps]
        assert (found, others) == preparation(Config(dict(test_pipeline=named))) and others == ['RandomFlip']
        assert [step['step'] for step in found] == ['resize', 'resize', 'crop', 'pad']

    def test_a_network_of_one_size_gets_it(self):
        network = SimpleNamespace(picture=SimpleNamespace(mean=torch.tensor([1.0, 2.2, 3.6]).view(3, 1, 1), flipped=False), channels=3)
        steps = fixed_preparation([dict(step='resize', scale=[96, 64], keep_ratio=True)], (64, 96), network)
        picture, inside = run_onnx.prepare(Image.new('RGB', (30, 40), 'red'), steps)
        assert picture.size == (96, 64) and inside == (48, 64)
        assert picture.getpixel((47, 63)) == (255, 0, 0) and picture.getpixel((48, 63)) == (1, 2, 4)
        steps = [dict(step='resize', short_side=256, interpolation='bilinear', antialias=False), dict(step='crop', size=[224, 224])]
        assert fixed_preparation(steps, (224, 224), network) == steps
        picture, _ = run_onnx.prepare(Image.new('RGB', (300, 400)), fixed_preparation(steps, (64, 96), network))
        assert picture.size == (96, 64)

    def test_masks_are_pasted_as_mmdet_does(self):
        from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

        masks = torch.rand(3, 1, 28, 28)
        boxes = torch.tensor([[3.2, 4.7, 30.1, 20.9], [-5.0, 10.0, 70.0, 55.5], [10.0, 10.0, 11.0, 12.0]])
        expected, _ = _do_paste_mask(masks, boxes, 50, 60, skip_empty=False)
        for mask, box, pasted in zip(masks, boxes, expected, strict=True):
            np.testing.assert_allclose(run_onnx.paste(mask[0].numpy(), box.numpy(), 60, 50), pasted, atol=1e-5)

    def test_bad_input(self, tmp_path):
        node = onnx.helper.make_node('Identity', ['x'], ['y'])
        value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in 'xy']
        graph = onnx.helper.make_graph([node], 'g', value[:1], value[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)])
        model.ir_version = 10
        onnx.save(model, tmp_path / 'bare.onnx')
        (tmp_path / 'text.onnx').write_text('no model')
        for name, words in (('bare.onnx', 'metadata'), ('text.onnx', 'cannot be loaded'), ('nowhere.onnx', 'cannot be loaded')):
            result = run_alone(tmp_path / name, tmp_path / 'x.png')
            assert result.returncode == 2 and words in result.stderr and result.stderr.count('\n') == 1, result.stderr

        model.metadata_props.add(key='task', value='classification')
        for key in ('prepare', 'classes', 'palette'):
            model.metadata_props.add(key=key, value='[]')
        onnx.save(model, tmp_path / 'x.onnx')
        result = run_alone(tmp_path / 'x.onnx', tmp_path / 'text.onnx', '--out-dir', tmp_path)
        assert result.returncode == 2 and 'cannot be read as a picture' in result.stderr
