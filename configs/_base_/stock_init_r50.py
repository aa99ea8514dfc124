# What a transfer config says to have an OREPA ResNet-50 that starts from stock ImageNet weights as its backbone.
_base_ = './reparameterize.py'

backbone = dict(type='OREPAResNet', init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet50'))
