"""Int8 networks: what is written, what is refused, and the metrics of exported networks."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import quantize_onnx
from mmengine.config import Config
from PIL import Image
from small_models import config, pictures, save_weights

from orepa_mm.deploy.evaluation import evaluate
from orepa_mm.deploy.export import export
from orepa_mm.deploy.pictures import pictures_in, read_pixels
from orepa_mm.deploy.quantize import OnnxNetwork, change, check_correlations, neighbour_correlation, quantize
from orepa_mm.errors import UsageError


def exported(name: str, folder: Path, data: Path) -> SimpleNamespace:
    """The checkpoint and the ONNX file of a small network with weights like trained ones."""
    checkpoint, graph = save_weights(config(name), folder / f'{name}.pth'), folder / f'{name}.onnx'
    next(export(config(name), checkpoint, graph, pictures=pictures(name, data)))
    return SimpleNamespace(checkpoint=checkpoint, graph=graph)


@pytest.fixture(scope='module')
def classifier(exporter, mini_data, tmp_path_factory) -> SimpleNamespace:
    return exported('classifier', tmp_path_factory.mktemp('classifier'), mini_data)


@pytest.fixture(scope='module')
def segmentor(exporter, mini_data, tmp_path_factory) -> SimpleNamespace:
    return exported('pspnet', tmp_path_factory.mktemp('segmentor'), mini_data)


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
    onnx = pytest.importorskip('onnx')
    graph = onnx.load_from_string(content).graph
    scales = {entry.name: entry.dims for entry in graph.initializer}
    kernels = [node for node in graph.node if node.op_type == 'DequantizeLinear' and node.input[0].endswith('weight_quantized')]
    assert len(kernels) > 20
    largest = max(
        np.abs(onnx.numpy_helper.to_array(entry).astype(int)).max() for entry in graph.initializer if 'weight_quantized' in entry.name
    )
    assert largest == (127 if full_range else 64)  # of twice 255 * 64 no sum is more than 16 bits hold
    assert all(bool(scales[node.input[1]]) == per_channel for node in kernels)


def stock_metrics(tools, name: str, checkpoint: Path, folder: Path) -> tuple[dict, Config]:
    """What tools/test.py measures of a checkpoint, and the config it does so with."""
    status, message = tools.test(name, checkpoint, folder, '--metrics', folder / 'metrics.json')
    assert status == 0, message
    cfg = config('classifier' if name == 'imagenet' else 'pspnet')
    cfg.merge_from_dict(tools.options(name))
    if name == 'imagenet':
        cfg.test_dataloader.collate_fn = dict(type='default_collate')
    return json.loads((folder / 'metrics.json').read_text()), cfg


def test_a_classifiers_metric_is_that_of_the_stock_runner(classifier, tools, tmp_path):
    expected, cfg = stock_metrics(tools, 'imagenet', classifier.checkpoint, tmp_path)
    assert evaluate(cfg, OnnxNetwork(classifier.graph)) == pytest.approx(expected)


def test_a_segmentor_in_int8_and_its_metric(segmentor, tools, mini_data, tmp_path):
    expected, cfg = stock_metrics(tools, 'cityscapes', segmentor.checkpoint, tmp_path)
    network = OnnxNetwork(segmentor.graph)
    found = evaluate(cfg, network)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=0.05, equal_nan=True)  # a pixel or two on the fence
    ready = prepared(network, mini_data / 'cityscapes-mini' / 'leftImg8bit' / 'train', 4)
    moved = change(network, OnnxNetwork(quantize(segmentor.graph, ready)), ready)
    assert 0 < moved.typical < 0.3 and moved.same > 0.8


def test_the_tool(classifier, train, tools, tmp_path, capsys):
    out = tmp_path / 'int8.onnx'
    arguments = ('tools/deploy/quantize_onnx', classifier.graph, train, out, '--count', '10')
    assert tools.run(*arguments, '--config', tools.CONFIGS['imagenet'], options=tools.options('imagenet')) == (0, '')
    before = out.read_bytes()
    assert OnnxNetwork(out).task == 'classification' and not list(tmp_path.glob('*.partial'))
    status, message = tools.run(*arguments)
    assert (status, message.count('\n')) == (2, 1) and 'exists; --force overwrites it' in message
    assert tools.run(*arguments, '--per-tensor', '--force') == (0, '')
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('missing', None, 'no such folder'),
        ('empty', {}, 'no picture in it'),
        ('noise', {f'{i}.png': np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(3)}, 'noise or blank'),
        ('jpeg noise', {f'{i}.jpg': np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(3)}, 'noise or'),
        ('blank', {'a.png': np.full((64, 64, 3), 7, np.uint8)}, 'noise or blank'),
    ],
)
def test_folders_that_are_refused(classifier, tools, tmp_path, name, content, match):
    folder, out = tmp_path / name, tmp_path / 'int8.onnx'
    if content is not None:
        folder.mkdir()
        for file, pixels in content.items():
            Image.fromarray(pixels).save(folder / file)
    status, message = tools.run('tools/deploy/quantize_onnx', classifier.graph, folder, out)
    assert (status, message.count('\n')) == (2, 1) and match in message, message
    assert not out.exists()


def test_one_real_picture_is_evidence_enough(train):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    check_correlations([neighbour_correlation(noise), neighbour_correlation(read_pixels(pictures_in(train, 1)[0]))], train)


def test_damaged_picture(tmp_path, train):
    path = tmp_path / 'a.png'
    path.write_bytes(pictures_in(train, 1)[0].read_bytes()[:200])
    with pytest.raises(UsageError, match=r'a\.png: cannot be read as a picture'):
        read_pixels(path)


def test_models_that_are_refused(classifier, train, tools, tmp_path):
    def message(model, out=tmp_path / 'int8.onnx', *arguments, options=None):
        status, text = tools.run('tools/deploy/quantize_onnx', model, train, out, '--count', '5', *arguments, options=options)
        assert (status, text.count('error: ')) == (2, 1), text
        return text

    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(classifier.graph.read_bytes()[:1000])
    assert 'onnxruntime cannot load it' in message(broken)
    assert 'no such file' in message(tmp_path / 'none.onnx')
    assert 'is the float network itself' in message(classifier.graph, classifier.graph, '--force')
    assert f'{classifier.graph} is no folder' in message(classifier.graph, classifier.graph / 'int8.onnx')
    done = tmp_path / 'done.onnx'
    done.write_bytes(quantize(classifier.graph, prepared(OnnxNetwork(classifier.graph), train, 2)))
    assert 'is quantized already' in message(done)
    assert 'config of mmseg' in message(
        classifier.graph, tmp_path / 'other.onnx', '--config', tools.CONFIGS['cityscapes'], options=tools.options('cityscapes')
    )


def test_missing_onnxruntime(classifier, train, tools, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *args: None if name == 'onnxruntime' else find(name, *args))
    status, message = tools.run('tools/deploy/quantize_onnx', classifier.graph, train, tmp_path / 'int8.onnx')
    assert (status, message) == (2, "error: onnxruntime missing: pip install 'orepa_mm[deploy]'.\n")


def test_a_full_disk_leaves_the_old_file(classifier, train, tools, tmp_path, monkeypatch):
    out = tmp_path / 'int8.onnx'
    out.write_bytes(b'old')
    write = Path.write_bytes

    def full(path, data):
        if path.parent == tmp_path:
            write(path, data[:100])
            raise OSError(28, os.strerror(28))
        return write(path, data)

    monkeypatch.setattr(Path, 'write_bytes', full)
    status, message = tools.run('tools/deploy/quantize_onnx', classifier.graph, train, out, '--count', '5', '--force')
    assert (status, message) == (2, f'error: {out}: cannot be written: No space left on device.\n')
    assert out.read_bytes() == b'old' and [path.name for path in tmp_path.iterdir()] == ['int8.onnx']


@pytest.mark.parametrize(
    ('facts', 'same'), [({}, 0.75), (dict(threshold=0.5), 0.5), (dict(threshold=0.9), 1.0), (dict(scores='sigmoid logits'), 0.5)]
)
def test_answers_without_a_largest_channel(facts, same):
    """A segmentor of one channel has its foreground from a threshold on, 0.3 where none is said; a classifier may say several labels."""

    class Network:
        answers = OnnxNetwork.answers
        task = 'classification' if 'scores' in facts else 'segmentation'

        def __init__(self, *values: float) -> None:
            self.facts, self.output = facts, np.array(values, np.float32).reshape((1, 4) if 'scores' in facts else (1, 1, 2, 2))

        def __call__(self, picture: None) -> np.ndarray:
            return self.output

    assert change(Network(-1, -0.5, 1, 2), Network(-1, 1, -2, 2), [None]).same == same
