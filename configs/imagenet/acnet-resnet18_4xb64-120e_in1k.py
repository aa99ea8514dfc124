_base_ = './none-resnet18_4xb64-120e_in1k.py'

model = dict(backbone=dict(type='OREPAResNet', method='ACNet'))
