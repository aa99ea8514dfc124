_base_ = ['./deeplabv3plus_none-r50-d8_4xb2-40k_cityscapes-512x1024.py', '../_base_/stock_init_r50.py']

model = dict(backbone=_base_.backbone)
default_hooks = dict(branches=_base_.branches_hook)
