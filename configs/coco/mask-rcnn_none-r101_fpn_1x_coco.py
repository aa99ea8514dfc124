_base_ = './mask-rcnn_none-r50_fpn_1x_coco.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='work_dirs/none-resnet101_4xb64-120e_in1k/epoch_120.pth')))
