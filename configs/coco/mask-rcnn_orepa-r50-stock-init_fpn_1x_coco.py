_base_ = ['./mask-rcnn_none-r50_fpn_1x_coco.py', '../_base_/stock_init_r50.py']

model = dict(backbone=_base_.backbone)
default_hooks = dict(branches=_base_.branches_hook)
