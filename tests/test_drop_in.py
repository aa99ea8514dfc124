"""``conv_cfg=dict(type='OREPAConv2d')`` in stock models of many kinds, from their stock configs with one override each."""

import pytest
import torch
from conftest import few
from mmengine.model import revert_sync_batchnorm
from small_models import stock

import orepa_mm
from orepa_mm import OREPAConv2d
from orepa_mm.deploy.loading import build_model
from orepa_mm.reparam.comparison import largest_difference, tensors

OREPA = dict(type='OREPAConv2d')
# config -> the parts of the model whose convolutions get branches
MODELS = {
    'mmdet/retinanet/retinanet_r50_fpn_1x_coco': ('bbox_head',),
    'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco': ('backbone', 'neck', 'bbox_head'),
    'mmdet/regnet/mask-rcnn_regnetx-400MF_fpn_ms-poly-3x_coco': ('backbone',),
    'mmseg/pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024': ('decode_head',),
    'mmseg/sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024': ('neck', 'decode_head'),
    'mmpretrain/resnet/resnet18_8xb32_in1k': ('backbone',),
    'mmpretrain/mobilenet_v2/mobilenet-v2_8xb32_in1k': ('backbone',),
    # slow
    'mmdet/faster_rcnn/faster-rcnn_r50_fpn_1x_coco': ('backbone',),
    'mmdet/cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': ('backbone',),
    'mmdet/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': ('bbox_head',),
    'mmdet/atss/atss_r50_fpn_1x_coco': ('neck', 'bbox_head'),
    'mmdet/hrnet/mask-rcnn_hrnetv2p-w18-1x_coco': ('backbone', 'neck'),
    'mmdet/res2net/mask-rcnn_res2net-101_fpn_2x_coco': ('neck', 'roi_head.mask_head'),
    'mmseg/upernet/upernet_r50_4xb2-40k_cityscapes-512x1024': ('decode_head', 'auxiliary_head'),
    'mmseg/fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024': ('decode_head',),
}


def build(name: str) -> torch.nn.Module:
    cfg = stock(*name.split('/', 1))
    cfg.merge_from_dict({f'model.{part}.conv_cfg': OREPA for part in MODELS[name]})
    model = revert_sync_batchnorm(build_model(cfg))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the initial values, where the frequency prior has a scale of zero
        for layer in layers(model):
            for key, parameter in layer.named_parameters():
                if key.endswith('scale'):
                    parameter.add_(0.05 + 0.05 * torch.rand(parameter.shape, generator=generator))
    return model


def layers(model: torch.nn.Module) -> list[OREPAConv2d]:
    return [module for module in model.modules() if isinstance(module, OREPAConv2d)]


def batch_of(name: str, model: torch.nn.Module) -> dict:
    if name.startswith('mmdet'):
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, [(3, 128, 128)] * 2, num_items=[3, 2], num_classes=4, with_mask='mask-rcnn' in name)
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 255, (3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(2)]
    if name.startswith('mmpretrain'):
        from mmpretrain.structures import DataSample

        return dict(inputs=torch.stack(pictures), data_samples=[DataSample().set_gt_label(i) for i in range(2)])
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = [PixelData(data=torch.randint(0, 19, (1, 64, 64), generator=generator)) for _ in range(2)]
    samples = [SegDataSample(gt_sem_seg=label, metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64))) for label in labels]
    model.data_preprocessor.size = (64, 64)
    return dict(inputs=pictures, data_samples=samples)


@torch.no_grad()
def dense_outputs(model: torch.nn.Module, batch: dict):
    """A function that gives the model's outputs on a batch before any sorting, which jumps at ties: two stages on the same proposals."""
    data = model.data_preprocessor(batch, False)
    inputs, samples = data['inputs'], data.get('data_samples')
    if not (getattr(model, 'with_rpn', False) and getattr(model, 'with_roi_head', False)):
        return torch.no_grad()(lambda: list(tensors(model(inputs, samples, mode='tensor'))))
    proposals = [sample.gt_instances for sample in samples]  # a network at its start may propose none, which a cascade does not take

    def outputs():
        features = model.extract_feat(inputs)
        return list(tensors((features, model.rpn_head(features), model.roi_head.forward(features, proposals, samples))))

    return torch.no_grad()(outputs)


def without_gradient(model: torch.nn.Module):
    for path, layer in model.named_modules():
        if isinstance(layer, OREPAConv2d) and all(p.requires_grad for p in layer.parameters()):
            for key, parameter in layer.named_parameters():
                if parameter.grad is None or not parameter.grad.isfinite().all() or parameter.grad.abs().max() == 0:
                    yield f'{path}.{key}'


@pytest.mark.parametrize('name', few(MODELS, *list(MODELS)[:7]))
def test_train_reparameterize_predict(name):
    model = build(name).train()
    assert len(layers(model)) >= len(MODELS[name])
    batch = batch_of(name, model)
    data = model.data_preprocessor(batch, True)
    for _ in range(5):  # a loss on randomly sampled anchors can pass a level of the neck by
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        assert loss.isfinite()
        loss.backward()
        idle = list(without_gradient(model))
        if not idle:
            break
    assert not idle

    model.eval()
    count = len(layers(model))
    outputs = dense_outputs(model, batch)
    expected = outputs()
    orepa_mm.reparameterize(model)
    assert count and not layers(model)
    assert largest_difference(expected, outputs()) < 1e-4  # float32 through a whole detector
