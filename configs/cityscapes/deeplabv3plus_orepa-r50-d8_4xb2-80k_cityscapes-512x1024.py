_base_ = ['./deeplabv3plus_none-r50-d8_4xb2-80k_cityscapes-512x1024.py', '../_base_/reparameterize.py']

model = dict(
    backbone=dict(
        type='OREPAResNet',
        init_cfg=dict(checkpoint='work_dirs/orepa-resnet50_4xb64-120e_in1k/epoch_120.pth'),
    )
)
