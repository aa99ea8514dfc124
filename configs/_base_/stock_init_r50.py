# What a transfer config says to have an OREPA ResNet-50 that starts from stock ImageNet weights as its backbone. Its stem stays plain: as a
# product of kernels it would move many times as far in a step.
_base_ = './reparameterize.py'

backbone = dict(type='OREPAResNet', plain_stem=True, init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet50'))
