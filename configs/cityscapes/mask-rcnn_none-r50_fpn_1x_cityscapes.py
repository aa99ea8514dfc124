_base_ = ['../_base_/orepa_mm.py', 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py', '../_base_/stem.py']

model = dict(backbone=dict(frozen_stages=-1))  # the stock config freezes the stem, which would cancel the multiplier
optim_wrapper = dict(constructor='OREPAOptimWrapperConstructor', optimizer=dict(fused=True), paramwise_cfg=_base_.stem_paramwise_cfg)
auto_scale_lr = dict(base_batch_size=8)
load_from = 'work_dirs/mask-rcnn_none-r50_fpn_1x_coco/epoch_12.pth'
default_hooks = _base_.safe_hooks
