# The RetinaNet recipe on the drawn COCO set: a quarter of the width, small pictures, minutes on a CPU.
_base_ = './retinanet_orepa-r50_fpn_1x_coco.py'

data_root = 'data/coco-mini/'
pretrained = 'work_dirs/orepa-resnet18-w16_imagenet-mini/last.pth'
scale = (192, 192)
channels = 64

model = dict(
    backbone=dict(depth=18, stem_channels=32, base_channels=16, norm_eval=False, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=channels),
    bbox_head=dict(in_channels=channels, feat_channels=channels, stacked_convs=2, anchor_generator=dict(octave_base_scale=3)),
)

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=scale)
test_pipeline[1].update(scale=scale)
train_dataloader = dict(
    batch_size=4, dataset=dict(data_root=data_root, filter_cfg=dict(filter_empty_gt=True, min_size=8), pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 7
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[5, 6], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=0.01), clip_grad=dict(max_norm=10, norm_type=2))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=3, filename_tmpl='last.pth', max_keep_ckpts=1))
randomness = dict(seed=0)
