"""ReparameterizeHook validates and tests whatever the toolboxes build: stock configs with narrow OREPA backbones."""

import json
from pathlib import Path

import pytest
import torch
from conftest import few
from mmengine.config import Config
from mmengine.runner import Runner
from small_models import stock
from torch import nn

from orepa_mm.engine import reparameterize_hook
from orepa_mm.engine.reparameterize_hook import ReparameterizeHook
from orepa_mm.errors import ReparameterizeError
from orepa_mm.layers import ReparameterizableConv2d

OREPA = dict(type='OREPAConv2d')
CHANNELS = [8, 16, 32, 64]
BACKBONE = dict(type='OREPAResNet', depth=18, stem_channels=8, base_channels=8, frozen_stages=-1, init_cfg=None, _delete_=True)
LOAD = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64)]
NECK = {'model.neck.in_channels': CHANNELS}
# Stock config -> what is narrowed besides the backbone, and where else there are OREPA convolutions.
DETECTORS = {
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco': NECK | {'model.neck.conv_cfg': OREPA},
    'queryinst/queryinst_r50_fpn_1x_coco': NECK | {'model.roi_head.mask_head.0.conv_cfg': OREPA},
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco': NECK,
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': NECK,
    'solov2/solov2_r50_fpn_1x_coco': NECK | {'model.neck.conv_cfg': OREPA},
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': NECK | {'model.bbox_head.conv_cfg': OREPA},
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': {'model.panoptic_head.in_channels': CHANNELS},
}


def validated_and_tested(cfg: Config, loader: dict, evaluator: dict, work_dir: Path) -> tuple[Runner, str]:
    """A stock Runner that has validated and tested with the hook, and its log."""
    cfg.merge_from_dict({'work_dir': str(work_dir), 'experiment_name': work_dir.name, 'load_from': None})
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg[key] = None
    cfg.val_cfg, cfg.test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
    cfg.default_hooks, cfg.custom_hooks = {}, [dict(type='ReparameterizeHook')]
    sampler = dict(type='DefaultSampler', shuffle=False)
    cfg.val_dataloader = cfg.test_dataloader = dict(batch_size=1, num_workers=0, sampler=sampler, **loader)
    cfg.val_evaluator = cfg.test_evaluator = evaluator
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    for name, parameter in runner.model.named_parameters():
        if 'fc_reg' in name:  # the stock code fails on boxes outside the picture
            nn.init.zeros_(parameter)
    for module in runner.model.modules():  # away from the start, where branches and norms do nothing
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
    layers = [m for m in runner.model.modules() if isinstance(m, ReparameterizableConv2d)]
    hook = next(hook for hook in runner.hooks if isinstance(hook, ReparameterizeHook))
    for run in (runner.val, runner.test):
        hook.difference = None
        run()
        assert hook.difference is not None and hook.difference < 1e-5
        assert [m for m in runner.model.modules() if isinstance(m, ReparameterizableConv2d)] == layers
    log = next(work_dir.glob('*/*.log')).read_text()
    assert log.count(f'Re-parameterized {len(layers)} layers') == 2, log
    return runner, log


FAST = ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco')


@pytest.mark.parametrize('name', few(DETECTORS, *FAST))
def test_detectors(name, mini_data, tmp_path):
    cfg = stock('mmdet', name)
    cfg.merge_from_dict({'model.backbone': BACKBONE, **DETECTORS[name]})
    if name.startswith('panoptic'):
        cfg.model.semantic_head.conv_cfg = OREPA
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(96, 96), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    root, ann_file = str(mini_data / 'coco-mini'), 'annotations/instances_val2017.json'
    dataset = dict(type='CocoDataset', data_root=root, ann_file=ann_file, data_prefix=dict(img='val2017/'), test_mode=True)
    dataset |= dict(pipeline=pipeline)
    if name.startswith('panoptic'):  # its predictions are no instances
        evaluator = dict(type='DumpResults', out_file_path=str(tmp_path / 'predictions.pkl'))
    else:
        evaluator = dict(type='CocoMetric', ann_file=f'{root}/{ann_file}', metric='bbox')
    runner, log = validated_and_tested(cfg, dict(dataset=dataset), evaluator, tmp_path / 'run')
    assert 'did not reach' not in log or name.startswith('queryinst'), log  # a mask head that gets no boxes is not run
    if name.startswith('panoptic'):
        assert any(isinstance(m, ReparameterizableConv2d) for m in runner.model.semantic_head.modules())


def test_sliding_window_segmentor(mini_data, tmp_path):
    cfg = stock('mmseg', 'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-769x769')
    head = dict(in_channels=64, channels=16, norm_cfg=dict(type='BN'))
    cfg.merge_from_dict(
        {
            'model.pretrained': None,
            'model.backbone': BACKBONE | dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), norm_cfg=dict(type='BN')),
            'model.decode_head': head,
            'model.auxiliary_head': head | dict(in_channels=32),
            'model.data_preprocessor.size': (64, 64),
            'model.test_cfg': dict(mode='slide', crop_size=(64, 64), stride=(42, 42)),
        }
    )
    dataset = cfg.val_dataloader.dataset
    dataset.data_root = str(mini_data / 'cityscapes-mini')
    dataset.pipeline = [step for step in dataset.pipeline if step['type'] != 'Resize']
    validated_and_tested(cfg, dict(dataset=dataset), dict(type='IoUMetric', iou_metrics=['mIoU']), tmp_path / 'run')


def test_multi_task_classifier(mini_data, tmp_path):
    cfg = stock('mmpretrain', 'resnet/resnet18_8xb32_in1k')
    pictures = sorted((mini_data / 'imagenet-mini' / 'val').rglob('*.jpg'))[:4]
    samples = [dict(img_path=str(path), gt_label=dict(shape=i % 2, colour=i % 3)) for i, path in enumerate(pictures)]
    ann_file = tmp_path / 'tasks.json'
    ann_file.write_text(json.dumps(dict(metainfo=dict(tasks=['shape', 'colour']), data_list=samples)))
    head = dict(type='LinearClsHead', in_channels=64, loss=dict(type='CrossEntropyLoss'))
    heads = dict(shape=dict(head, num_classes=2), colour=dict(head, num_classes=3))
    cfg.merge_from_dict(
        {
            'model.backbone': BACKBONE | dict(out_indices=(3,)),
            'model.head': {'_delete_': True, 'type': 'MultiTaskHead', 'task_heads': heads},
            'data_preprocessor.num_classes': -1,
        }
    )
    pipeline = [*LOAD, dict(type='PackMultiTaskInputs', multi_task_fields=('gt_label',))]
    dataset = dict(type='MultiTaskDataset', ann_file=str(ann_file), data_root='', pipeline=pipeline)
    loader = dict(dataset=dataset, collate_fn=dict(type='default_collate'))
    metrics = {task: [dict(type='Accuracy', topk=(1,))] for task in heads}
    validated_and_tested(cfg, loader, dict(type='MultiTasksMetric', task_metrics=metrics), tmp_path / 'run')


def test_a_wrong_layer_is_found_and_named(mini_data, tmp_path, monkeypatch):
    """One weight of one plain form is changed: the run ends with the layer's name, and the training form is back."""
    plan = reparameterize_hook.plan_swaps

    def faulty(model):
        swaps = plan(model)
        swap = next(swap for swap in swaps if swap.path == 'backbone.layer3.0.conv2')
        with torch.no_grad():
            swap.new.weight[0, 0, 0, 0] += 0.1 * swap.new.weight.abs().max()
        return swaps

    monkeypatch.setattr(reparameterize_hook, 'plan_swaps', faulty)
    cfg = stock('mmpretrain', 'resnet/resnet18_8xb32_in1k')
    cfg.merge_from_dict({'model.backbone': BACKBONE | dict(out_indices=(3,)), 'model.head.in_channels': 64})
    pipeline = [*LOAD, dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_root=str(mini_data / 'imagenet-mini' / 'val'), pipeline=pipeline)
    with pytest.raises(ReparameterizeError, match=r'"backbone\.layer3\.0\.conv2" differs from its training form'):
        validated_and_tested(cfg, dict(dataset=dataset, collate_fn=dict(type='default_collate')), dict(type='Accuracy'), tmp_path / 'run')
