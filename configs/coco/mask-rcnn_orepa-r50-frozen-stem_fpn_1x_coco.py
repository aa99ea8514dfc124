# The stem stays as ImageNet training left it.
_base_ = './mask-rcnn_orepa-r50_fpn_1x_coco.py'

model = dict(backbone=dict(frozen_stages=0))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
