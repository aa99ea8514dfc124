_base_ = ['./pspnet_none-r50-d8_4xb2-80k_cityscapes-512x1024.py', '../_base_/reparameterize.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        method='DBB',
        init_cfg=dict(checkpoint='work_dirs/dbb-resnet50_4xb64-120e_in1k/epoch_120.pth'),
    )
)
