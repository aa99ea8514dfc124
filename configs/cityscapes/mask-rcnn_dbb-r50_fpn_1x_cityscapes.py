_base_ = './mask-rcnn_none-r50_fpn_1x_cityscapes.py'

model = dict(backbone=dict(type='OREPAResNet', method='DBB'))
load_from = 'work_dirs/mask-rcnn_dbb-r50_fpn_1x_coco/epoch_12.pth'
custom_hooks = []
