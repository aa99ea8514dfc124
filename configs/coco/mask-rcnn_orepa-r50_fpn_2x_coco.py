_base_ = ['./mask-rcnn_none-r50_fpn_2x_coco.py', '../_base_/orepa_r50.py']

model = dict(backbone=_base_.backbone)
