_base_ = ['../_base_/imagenet_4xb64-120e.py', 'mmpretrain::_base_/models/resnet18.py']

model = dict(backbone=dict(stem_channels=128, base_channels=128), head=dict(in_channels=1024))
