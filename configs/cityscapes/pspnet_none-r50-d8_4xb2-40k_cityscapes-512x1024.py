_base_ = ['../_base_/orepa_mm.py', 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', '../_base_/stem.py']

model = dict(
    pretrained=None,
    backbone=dict(
        type='ResNet',  # with the 7x7 stem; the stock config takes ResNetV1c
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/none-resnet50_4xb64-120e_in1k/epoch_120.pth', prefix='backbone.'),
    ),
)
optim_wrapper = dict(constructor='OREPAOptimWrapperConstructor', optimizer=dict(fused=True), paramwise_cfg=_base_.stem_paramwise_cfg)
default_hooks = _base_.safe_hooks
