_base_ = './none-wideresnet18-x2_4xb64-120e_in1k.py'

model = dict(backbone=dict(type='OREPAResNet'))
