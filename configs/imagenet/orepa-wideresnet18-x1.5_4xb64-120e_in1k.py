_base_ = './none-wideresnet18-x1.5_4xb64-120e_in1k.py'

model = dict(backbone=dict(type='OREPAResNet'))
