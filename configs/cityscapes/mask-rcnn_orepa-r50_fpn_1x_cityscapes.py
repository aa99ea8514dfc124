_base_ = './mask-rcnn_none-r50_fpn_1x_cityscapes.py'

model = dict(backbone=dict(type='OREPAResNet'))
load_from = 'work_dirs/mask-rcnn_orepa-r50_fpn_1x_coco/epoch_12.pth'
custom_hooks = []
