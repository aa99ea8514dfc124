# Goes on from a trained stock Mask R-CNN. load_from is where mmdet's own config leaves one; for a file of yours add
# --cfg-options load_from=PATH.
_base_ = './mask-rcnn_orepa-r50-stock-init_fpn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(_delete_=True)))
load_from = 'work_dirs/mask-rcnn_r50_fpn_1x_coco/epoch_12.pth'
optim_wrapper = dict(optimizer=dict(lr=0.002))  # the rate the detector ended with times ten, as it is trained already
