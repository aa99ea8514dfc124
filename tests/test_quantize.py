"""Int8 networks: what is written, what is refused, and the metrics of exported networks."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import quantize_onnx
from conftest import done, fill_disk, refused
from mmengine.config import Config
from PIL import Image
from small_models import config, pictures, save_weights

from orepa_mm.deploy.evaluation import evaluate
from orepa_mm.deploy.export import export
from orepa_mm.deploy.pictures import pictures_in, read_pixels
from orepa_mm.deploy.quantize import OnnxNetwork, change, check_correlations, neighbour_correlation, quantize
from orepa_mm.errors import UsageError

QUANTIZE = 'tools/deploy/quantize_onnx'


def exported(name: str, folder: Path, data: Path) -> SimpleNamespace:
    """The checkpoint and the ONNX file of a small network with weights like trained ones."""
    checkpoint, graph = save_weights(config(name), folder / f'{name}.pth'), folder / f'{name}.onnx'
    next(export(config(name), checkpoint, graph, pictures=pictures(name, data)))
    return SimpleNamespace(checkpoint=checkpoint, graph=graph)


@pytest.fixture(scope='module')
def classifier(exporter, mini_data, tmp_path_factory) -> SimpleNamespace:
    return exported('classifier', tmp_path_factory.mktemp('classifier'), mini_data)


@pytest.fixture
def train(mini_data) -> Path:
    return mini_data / 'imagenet-mini' / 'train'


def prepared(network: OnnxNetwork, folder: Path, count: int = 20) -> list[np.ndarray]:
    return [quantize_onnx.prepared(network, path) for path in pictures_in(folder, count)]


@pytest.mark.parametrize(('per_channel', 'full_range'), [(True, False), (False, False), (True, True)])
def test_a_classifier_in_int8(classifier, train, per_channel, full_range):
    network = OnnxNetwork(classifier.graph)
    content = quantize(classifier.graph, prepared(network, train), per_channel, full_range)
    assert len(content) < 0.4 * classifier.graph.stat().st_size
    quantized = OnnxNetwork(content)
    assert quantized.facts == network.facts
    moved = change(network, quantized, prepared(network, train, 40))
    assert 0 < moved.typical < 0.3 and 0 < moved.largest < 0.3
    graph = onnx.load_from_string(content).graph
    scales = {entry.name: entry.dims for entry in graph.initializer}
    kernels = [node for node in graph.node if node.op_type == 'DequantizeLinear' and node.input[0].endswith('weight_quantized')]
    assert len(kernels) > 20
    weights = [onnx.numpy_helper.to_array(entry) for entry in graph.initializer if 'weight_quantized' in entry.name]
    largest = max(np.abs(values.astype(int)).max() for values in weights)
    assert largest == (127 if full_range else 64)  # of twice 255 * 64 no sum is more than 16 bits hold
    assert all(bool(scales[node.input[1]]) == per_channel for node in kernels)


def stock_metrics(tools, name: str, checkpoint: Path, folder: Path) -> tuple[dict, Config]:
    """What tools/test.py measures of a checkpoint, and the config it does so with."""
    done(tools.test(name, checkpoint, folder, '--metrics', folder / 'metrics.json'))
    cfg = config('classifier' if name == 'imagenet' else 'pspnet')
    cfg.merge_from_dict(tools.options(name))
    if name == 'imagenet':
        cfg.test_dataloader.collate_fn = dict(type='default_collate')
    return json.loads((folder / 'metrics.json').read_text()), cfg


def test_a_classifiers_metric_is_that_of_the_stock_runner(classifier, tools, tmp_path):
    expected, cfg = stock_metrics(tools, 'imagenet', classifier.checkpoint, tmp_path)
    assert evaluate(cfg, OnnxNetwork(classifier.graph)) == pytest.approx(expected)


def test_a_segmentor_in_int8_and_its_metric(exporter, tools, mini_data, tmp_path):
    segmentor = exported('pspnet', tmp_path, mini_data)
    expected, cfg = stock_metrics(tools, 'cityscapes', segmentor.checkpoint, tmp_path)
    network = OnnxNetwork(segmentor.graph)
    found = evaluate(cfg, network)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=0.05, equal_nan=True)  # a pixel or two on the fence
    ready = prepared(network, mini_data / 'cityscapes-mini' / 'leftImg8bit' / 'train', 4)
    moved = change(network, OnnxNetwork(quantize(segmentor.graph, ready)), ready)
    assert 0 < moved.typical < 0.3 and moved.same > 0.8


def test_the_tool(classifier, train, tools, tmp_path):
    out = tmp_path / 'int8.onnx'
    arguments = (QUANTIZE, classifier.graph, train, out, '--count', '10')
    assert not done(tools.run(*arguments, '--config', tools.CONFIGS['imagenet'], options=tools.options('imagenet')))
    before = out.read_bytes()
    assert OnnxNetwork(out).task == 'classification' and not list(tmp_path.glob('*.partial'))
    refused(tools.run(*arguments), 'exists; --force overwrites it')
    assert not done(tools.run(*arguments, '--per-tensor', '--force'))
    assert out.read_bytes() != before


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        (None, 'no such folder'),
        ({}, 'no picture in it'),
        ({f'{i}.png': noise(i) for i in range(3)}, 'noise or blank'),
        ({f'{i}.jpg': noise(i) for i in range(3)}, 'noise or blank'),
        ({'a.png': np.full((64, 64, 3), 7, np.uint8)}, 'noise or blank'),
    ],
)
def test_folders_that_are_refused(classifier, tools, tmp_path, content, match):
    folder, out = tmp_path / 'pictures', tmp_path / 'int8.onnx'
    if content is not None:
        folder.mkdir()
        for file, pixels in content.items():
            Image.fromarray(pixels).save(folder / file)
    refused(tools.run(QUANTIZE, classifier.graph, folder, out), match)
    assert not out.exists()


def test_one_real_picture_is_evidence_enough_and_a_damaged_one_none(train, tmp_path):
    picture, path = pictures_in(train, 1)[0], tmp_path / 'a.png'
    check_correlations([neighbour_correlation(noise(0)), neighbour_correlation(read_pixels(picture))], train)
    path.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UsageError, match=r'a\.png: cannot be read as a picture'):
        read_pixels(path)


def test_models_that_are_refused(classifier, train, tools, tmp_path, monkeypatch):
    def quantizing(model, out=tmp_path / 'int8.onnx', *arguments, options=None):
        return tools.run(QUANTIZE, model, train, out, '--count', '5', *arguments, options=options)

    graph, broken, quantized = classifier.graph, tmp_path / 'broken.onnx', tmp_path / 'done.onnx'
    broken.write_bytes(graph.read_bytes()[:1000])
    quantized.write_bytes(quantize(graph, prepared(OnnxNetwork(graph), train, 2)))
    refused(quantizing(broken), 'onnxruntime cannot load it')
    refused(quantizing(quantized), 'is quantized already')
    refused(quantizing(tmp_path / 'none.onnx'), 'no such file')
    refused(quantizing(graph, graph, '--force'), 'is the float network itself')
    refused(quantizing(graph, graph / 'int8.onnx'), f'{graph} is no folder')
    config = ('--config', tools.CONFIGS['cityscapes'])
    refused(quantizing(graph, tmp_path / 'other.onnx', *config, options=tools.options('cityscapes')), 'config of mmseg')
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *args: None if name == 'onnxruntime' else find(name, *args))
    refused(quantizing(graph), "onnxruntime missing: pip install 'orepa_mm[deploy]'")


def test_a_full_disk_leaves_the_old_file(classifier, train, tools, tmp_path, monkeypatch):
    out = tmp_path / 'int8.onnx'
    out.write_bytes(b'old')
    fill_disk(tmp_path, monkeypatch)
    refused(tools.run(QUANTIZE, classifier.graph, train, out, '--count', '5', '--force'), f'{out}: cannot be written: No space left')
    assert out.read_bytes() == b'old' and [path.name for path in tmp_path.iterdir()] == ['int8.onnx']


@pytest.mark.parametrize(
    ('facts', 'same'), [({}, 0.75), (dict(threshold=0.5), 0.5), (dict(threshold=0.9), 1.0), (dict(scores='sigmoid logits'), 0.5)]
)
def test_answers_without_a_largest_channel(facts, same):
    """A segmentor of one channel has its foreground from a threshold on, 0.3 where none is said; a classifier may say several labels."""
    task, shape = ('classification', (1, 4)) if 'scores' in facts else ('segmentation', (1, 1, 2, 2))

    class Network:
        answers = OnnxNetwork.answers

        def __init__(self, *values: float) -> None:
            self.task, self.facts, self.output = task, facts, np.array(values, np.float32).reshape(shape)

        def __call__(self, picture: None) -> np.ndarray:
            return self.output

    assert change(Network(-1, -0.5, 1, 2), Network(-1, 1, -2, 2), [None]).same == same
