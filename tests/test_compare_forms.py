"""Predictions of both forms beside each other: tools/analysis_tools/compare_forms.py."""

from types import SimpleNamespace

import compare_forms as forms
import numpy as np
import pytest
import torch
from conftest import done, few, refused
from mmengine.structures import InstanceData, PixelData
from small_models import config, path_of, pictures, save_weights


def found(boxes: list, scores: list, labels: list, **more) -> SimpleNamespace:
    instances = InstanceData(bboxes=torch.tensor(boxes), scores=torch.tensor(scores), labels=torch.tensor(labels), **more)
    return SimpleNamespace(ori_shape=(6, 8), pred_instances=instances)


@pytest.mark.parametrize('name', few(['classifier', 'pspnet', 'maskrcnn', 'retinanet'], 'classifier', 'maskrcnn'))
def test_both_forms_of_a_network(name, mini_data, tmp_path):
    """With DBB, whose two forms differ by rounding."""
    cfg = config(name, model__backbone__method='DBB')
    checkpoint = save_weights(cfg, tmp_path / 'weights.pth')
    files = sorted(path for path in pictures(name, mini_data).rglob('*') if path.suffix in ('.jpg', '.png'))[:1]
    model, (pair,) = forms.compare_forms(cfg, checkpoint, files)
    assert 'largest difference' not in pair.words and pair.words.startswith(('of a probability', 'of a score'))
    if name in ('classifier', 'pspnet'):
        assert 0 < pair.largest < 1e-4  # float32 rounding, magnified by untrained layers
        assert pair.difference.shape == ((5,) if name == 'classifier' else pair.picture.shape[:2])
    forms.draw([pair], forms.names_and_palette(model, [pair]), tmp_path / 'forms.png')
    assert (tmp_path / 'forms.png').read_bytes().startswith(b'\x89PNG')


def test_the_difference_of_boxes_is_seen_where_they_are():
    a = found([[1.0, 1.0, 4.0, 3.0], [5.0, 4.0, 8.0, 6.0]], [0.9, 0.5], [0, 1])
    b = found([[5.0, 4.0, 8.0, 6.0], [1.0, 1.0, 4.25, 3.0]], [0.5, 0.8], [1, 0])
    difference, words = forms.compare_instances(a, b)
    expected = np.zeros((6, 8))
    expected[1:3, 1:4], expected[1:3, 4] = 0.1, 0.8 * 0.25
    np.testing.assert_allclose(difference, expected, atol=1e-6)
    assert words == 'of a score 1.0e-01, of a corner 2.5e-01 pixels; 2 and 2 boxes'


def test_an_object_of_another_class_and_one_that_is_missing_are_seen():
    a, b = found([[0.0, 0.0, 2.0, 2.0]], [0.75], [3]), found([[0.0, 0.0, 2.0, 2.0]], [0.5], [4])
    assert forms.compare_instances(a, b)[0].max() == 0.75
    none = found([], [], [])
    none.pred_instances = a.pred_instances[:0]
    difference, words = forms.compare_instances(a, none)
    assert difference.sum() == 4 * 0.75 and words.endswith('1 and 0 boxes')
    assert forms.compare_instances(none, none)[0].max() == 0


def test_masks_count_pixel_by_pixel():
    masks = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    masks[0, :, 2, 2:5], masks[1, :, 2, 2:4] = True, True
    a, b = (found([[2.0, 2.0, 5.0, 3.0]], [0.5], [0], masks=mask) for mask in masks)
    difference, words = forms.compare_instances(a, b)
    assert difference[2, 4] == 0.5 and difference.sum() == 0.5 and words.endswith('1 pixels of masks')


def test_the_difference_of_labels_is_that_of_their_probabilities():
    logits = torch.zeros(2, 2, 4, 4)
    logits[1, 0, 1, 2] = 2.0
    a, b = (SimpleNamespace(seg_logits=PixelData(data=each), pred_sem_seg=PixelData(data=each.argmax(0, keepdim=True))) for each in -logits)
    difference, words = forms.compare_labels(a, b)
    assert difference[1, 2] == pytest.approx(1 / (1 + np.exp(-2)) - 0.5) and (difference > 0).sum() == 1
    assert words.endswith('1 of 16 pixels have another label')


@pytest.mark.parametrize(('largest', 'factor'), [(0.0, 1.0), (0.5, 1.0), (0.02, 10.0), (3e-7, 1e6), (2.0, 1.0)])
def test_magnification(largest, factor):
    assert forms.magnification(largest) == pytest.approx(factor)


def test_the_tool_and_bad_input(tools, mini_data, tmp_path):
    tool, out, weights = 'tools/analysis_tools/compare_forms', tmp_path / 'forms.png', tmp_path / 'weights.pth'
    save_weights(config('classifier'), weights)
    files = sorted(pictures('classifier', mini_data).rglob('*.jpg'))[:2]
    done(tools.run(tool, path_of('classifier'), weights, *files, out))
    out.unlink()
    refused(tools.run(tool, path_of('classifier'), weights, tmp_path / 'none.jpg', out), 'none.jpg: cannot be read as a picture')
    stock = {'model.backbone.method': 'none', 'model.backbone.init': None}
    save_weights(config('classifier', model__backbone__method='none'), weights)
    refused(tools.run(tool, path_of('classifier'), weights, *files, out, options=stock), 'nothing to re-parameterize')
    refused(tools.run(tool, path_of('classifier'), weights, *files, out, options={'test_dataloader': None}), 'has no test pipeline')
    assert not out.exists()
