# The branches that cost next to nothing; those a pretrained backbone has more of are added to its plain ones.
_base_ = './mask-rcnn_orepa-r50_fpn_1x_coco.py'

model = dict(backbone=dict(branches='light'))
