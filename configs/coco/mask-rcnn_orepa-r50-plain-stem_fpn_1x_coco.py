# The stem's branches are squeezed into one plain kernel when the checkpoint is loaded, and that kernel is trained at full speed.
_base_ = './mask-rcnn_orepa-r50_fpn_1x_coco.py'

model = dict(backbone=dict(plain_stem=True))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
