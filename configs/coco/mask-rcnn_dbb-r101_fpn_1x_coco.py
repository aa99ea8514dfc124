_base_ = './mask-rcnn_none-r101_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='OREPAResNet',
        method='DBB',
        init_cfg=dict(checkpoint='work_dirs/dbb-resnet101_4xb64-120e_in1k/epoch_120.pth'),
    )
)
custom_hooks = []
