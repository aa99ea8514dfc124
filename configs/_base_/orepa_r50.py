# What a transfer config says to have the ImageNet-trained OREPA ResNet-50 as its backbone.
_base_ = './reparameterize.py'

backbone = dict(type='OREPAResNet', init_cfg=dict(checkpoint='work_dirs/orepa-resnet50_4xb64-120e_in1k/epoch_120.pth'))
