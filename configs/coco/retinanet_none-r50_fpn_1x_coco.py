_base_ = ['../_base_/orepa_mm.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/stem.py']

model = dict(
    backbone=dict(
        frozen_stages=-1,  # the stock config freezes the stem, which would cancel the multiplier
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/none-resnet50_4xb64-120e_in1k/epoch_120.pth', prefix='backbone.'),
    )
)
optim_wrapper = dict(constructor='OREPAOptimWrapperConstructor', optimizer=dict(fused=True), paramwise_cfg=_base_.stem_paramwise_cfg)
default_hooks = _base_.safe_hooks
