_base_ = './none-resnext50-32x4d_4xb64-120e_in1k.py'

model = dict(backbone=dict(type='OREPAResNeXt'))
