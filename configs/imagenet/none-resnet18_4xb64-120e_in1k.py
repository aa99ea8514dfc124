_base_ = ['../_base_/imagenet_4xb64-120e.py', 'mmpretrain::_base_/models/resnet18.py']
