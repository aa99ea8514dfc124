"""A config that ships with a toolbox, with data that fits it, is not refused."""

import check_stock_configs as stock
import preflight
import pytest

SAMPLE = (
    'mmdet/htc/htc_r50_fpn_1x_coco.py',
    'mmdet/scnet/scnet_r50_fpn_1x_coco.py',
    'mmdet/panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet/lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
    'mmdet/pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    'mmseg/stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    'mmseg/unet/unet-s5-d16_fcn_4xb4-160k_hsidrive-192x384.py',
    'mmseg/hrnet/fcn_hr18_4xb4-20k_voc12aug-512x512.py',
    'mmpretrain/resnet/resnet18_8xb32_in1k.py',
    'mmpretrain/efficientnet_v2/efficientnetv2-s_8xb32_in21k.py',
    'mmpretrain/lenet/lenet5_mnist.py',
)
OTHER_LAYOUTS = {'mmdet/pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', 'mmpretrain/lenet/lenet5_mnist.py'}
# It trains on 21 classes of Pascal VOC and tests on 20, all of whose labels are other ones.
RIGHTLY = {f'mmseg/san/san-vit-{size}_voc12aug-640x640.py' for size in ('b16', 'l14')}


def check(configs: list, root) -> dict:
    results = {result.name: result for result in stock.check_all(configs, root, 1, preflight.__file__)}
    bad = [result for result in results.values() if (result.falsely_refused and result.name not in RIGHTLY) or result.traceback]
    assert not bad, stock.summary(bad)
    return results


@pytest.mark.slow
def test_a_sample_of_the_stock_configs(tmp_path):
    results = check(stock.stock_configs(list(SAMPLE)), tmp_path)
    assert set(results) == set(SAMPLE)
    for name, result in results.items():
        if name in OTHER_LAYOUTS:
            assert not result.fitted
        else:
            assert result.built and not result.refusal, result


@pytest.mark.slow
def test_all_stock_configs(tmp_path):
    results = check(stock.stock_configs(['*']), tmp_path)
    assert len(results) > 1900 and sum(result.fitted and result.built for result in results.values()) > 1700


def test_false_refusals_are_told_from_right_ones():
    result = stock.Result('mmdet/a.py', fitted=True, built=True, refusal='a.jpg: no such picture')
    assert result.falsely_refused and not result._replace(built=False).falsely_refused
    unknown = result._replace(fitted=False)
    assert not unknown.falsely_refused and unknown._replace(refusal='a.json: not JSON').falsely_refused
    assert 'falsely refused: 1' in stock.summary([result, unknown])
