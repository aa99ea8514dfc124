_base_ = ['../_base_/imagenet_4xb64-120e.py', 'mmpretrain::_base_/models/repvgg-A0_in1k.py']

model = dict(backbone=dict(type='OREPARepVGG', method='RepVGG', arch='A1'))
