# Goes on from mmdet's own trained Mask R-CNN: its convolutions get branches, and it starts as good as it was.
_base_ = ['./mask-rcnn_none-r50_fpn_1x_coco.py', '../_base_/reparameterize.py']

model = dict(backbone=dict(type='OREPAResNet', plain_stem=True, init_cfg=dict(_delete_=True)))
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth'
)
optim_wrapper = dict(optimizer=dict(lr=0.002))  # the rate the detector ended with times ten, as it is trained already
