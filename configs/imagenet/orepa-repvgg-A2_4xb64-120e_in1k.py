_base_ = './repvgg-A2_4xb64-120e_in1k.py'

model = dict(backbone=dict(method='OREPA'))
