# Beyond the paper: RTMDet-Ins with OREPA convolutions in backbone, neck and head.
_base_ = ['../_base_/orepa_mm.py', 'mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py', '../_base_/stem.py']

conv_cfg = dict(type='OREPAConv2d')
model = dict(
    backbone=dict(
        _delete_=True,
        type='OREPAResNet',
        depth=50,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/orepa-resnet50_4xb64-120e_in1k/epoch_120.pth', prefix='backbone.'),
    ),
    neck=dict(in_channels=[512, 1024, 2048], conv_cfg=conv_cfg),
    bbox_head=dict(conv_cfg=conv_cfg),
)
optim_wrapper = dict(constructor='OREPAOptimWrapperConstructor', optimizer=dict(fused=True), paramwise_cfg=_base_.stem_paramwise_cfg)
auto_scale_lr = dict(base_batch_size=256)
default_hooks = _base_.safe_hooks
