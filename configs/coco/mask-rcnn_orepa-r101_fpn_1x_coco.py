_base_ = './mask-rcnn_none-r101_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='OREPAResNet',
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet101_4xb64-120e_in1k/epoch_120.pth'),
    )
)
custom_hooks = []
