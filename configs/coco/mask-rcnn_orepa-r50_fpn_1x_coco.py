_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/orepa.py']

# The checkpoint of an OREPA ResNet-50 classifier that the backbone starts from.
pretrained = 'checkpoints/orepa-resnet50_in1k.pth'
# Learning rate of the stem relative to the rest. A deep linear stem leaves ImageNet with other weights than a plain one: tune this.
stem_lr_mult = 0.1

model = dict(
    backbone=dict(
        type='OREPAResNet',
        frozen_stages=-1,  # the stock config freezes the stem, which would cancel the multiplier
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone.conv1': dict(lr_mult=stem_lr_mult), 'backbone.bn1': dict(lr_mult=stem_lr_mult)})
)
