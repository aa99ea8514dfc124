"""ONNX files predict what the training form's stock code predicts, on pictures, at several sizes; whatever cannot be exported is named."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exports import CONFIGS, Exports, config
from torch import nn

from orepa_mm.deploy.agreement import differing_labels
from orepa_mm.deploy.export import export
from orepa_mm.deploy.networks import deploy_network
from orepa_mm.deploy.networks.pooling import AdaptiveAveragePool
from orepa_mm.errors import ExportError


@pytest.fixture(scope='session')
def exports(tmp_path_factory, mini_data) -> Exports:
    return Exports(tmp_path_factory.mktemp('exports'), mini_data)


def session(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


@pytest.mark.parametrize('name', CONFIGS)
def test_agrees_at_four_sizes(name, exports):
    path, rows = exports.dynamic(name)
    assert len({row.size for row in rows}) == 4 and max(row.size[0] for row in rows) > rows[0].size[0]
    assert all(row.agreement.problem == '' and row.agreement.largest < 1e-4 for row in rows)
    (picture,) = session(path).get_inputs()
    assert picture.type == 'tensor(uint8)' and picture.shape[2:] == ['height', 'width']


@pytest.mark.parametrize('name', CONFIGS)
def test_the_file_says_how_to_run_it_and_nothing_of_this_machine(name, exports):
    path, _ = exports.dynamic(name)
    facts = session(path).get_modelmeta().custom_metadata_map
    assert facts['task'] in ('classification', 'segmentation', 'detection')
    assert json.loads(facts['classes']) == ['a', 'b'] and json.loads(facts['prepare'])
    assert facts['checkpoint'] == f'{name}.pth' and len(facts['checkpoint_sha256']) == 64
    content = path.read_bytes()
    assert str(exports.folder).encode() not in content and b'site-packages' not in content
    assert not any(tensor.external_data for tensor in onnx.load(path).graph.initializer)


def test_softmax_and_labels(exports, tmp_path):
    for name, option in (('classifier', 'softmax'), ('pspnet', 'labels')):
        path = tmp_path / f'{name}.onnx'
        settings = dict(size=(96, 160), pictures=exports.pictures(name))
        rows = list(export(config(name), exports.checkpoint(name), path, **settings, **{option: True}))
        assert {row.size for row in rows} == {(96, 160)}
        picture = np.random.default_rng(0).integers(0, 256, (1, 3, 96, 160), np.uint8)
        (output,) = session(path).run(None, {'picture': picture})
        if name == 'classifier':
            assert output.sum() == pytest.approx(1, abs=1e-5)
        else:
            (logits,) = session(exports.dynamic(name)[0]).run(None, {'picture': picture})
            assert output.dtype == np.int64 and (output == logits.argmax(1)).mean() > 0.9999
        other = 'labels' if option == 'softmax' else 'softmax'
        with pytest.raises(ExportError, match=f'--{other} is for'):
            next(export(config(name), exports.checkpoint(name), path, **settings, **{other: True}))


@pytest.mark.parametrize('size', [(1, 1), (5, 7), (16, 9), (33, 64)])
@pytest.mark.parametrize('output', [1, 2, 3, 6, (4, None), (None, 3)])
def test_adaptive_pool_is_torch_s(size, output):
    x = torch.randn(2, 3, *size)
    rows, columns = output if isinstance(output, tuple) else (output, output)
    torch.testing.assert_close(AdaptiveAveragePool(rows, columns)(x), nn.AdaptiveAvgPool2d(output)(x), rtol=1e-5, atol=1e-6)


def test_a_file_that_predicts_something_else_is_refused(exports, tmp_path, monkeypatch):
    def other(model, *args):
        model.head.fc.weight.data[0, 0] += 0.01
        return deploy_network(model, *args)

    monkeypatch.setattr('orepa_mm.deploy.export.deploy_network', other)
    with pytest.raises(ExportError, match='does not predict what the training form does'):
        next(export(config('classifier'), exports.checkpoint('classifier'), tmp_path / 'x.onnx', pictures=exports.pictures('classifier')))


def test_ties_are_told_from_wrong_labels():
    scores = torch.tensor([[1.0, 1.0 - 1e-6, 0.0], [1.0, 0.5, 0.0]])
    assert differing_labels(scores, torch.tensor([0, 0])) == (0, 0)
    assert differing_labels(scores, torch.tensor([1, 0])) == (1, 0)
    assert differing_labels(scores, torch.tensor([1, 1])) == (2, 1)
