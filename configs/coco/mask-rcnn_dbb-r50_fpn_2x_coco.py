_base_ = ['./mask-rcnn_none-r50_fpn_2x_coco.py', '../_base_/reparameterize.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        method='DBB',
        init_cfg=dict(checkpoint='work_dirs/dbb-resnet50_4xb64-120e_in1k/epoch_120.pth'),
    )
)
