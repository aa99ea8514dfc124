# Mask R-CNN on 49 photographs with balloons; the last 12 of the training part validate, the val part tests.
_base_ = '../../../../configs/coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py'

scale = (256, 256)
max_epochs = 24
proposals = dict(nms_pre=256, max_per_img=100)

model = dict(
    backbone=dict(method='none', stem_channels=32, init_cfg=dict(checkpoint='pretrained:plain')),
    # Fewer proposals and one sample for each bin: on a CPU half of the time would go into RoI Align and NMS.
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(num_classes=1),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_classes=1),
    ),
    train_cfg=dict(rpn_proposal=proposals),
    test_cfg=dict(rpn=proposals),
)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=scale)
test_pipeline[1].update(scale=scale)
# Without an annotation file the metric takes the annotations from the samples, and so those of a part of the file.
test_pipeline[-1].update(meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'))
workers = dict(num_workers=0, persistent_workers=False)
dataset = dict(data_root='data/balloon/', metainfo=dict(classes=('balloon',)))
train_dataloader = dict(workers, batch_size=2, dataset=dict(dataset, indices=49, pipeline=train_pipeline))
train_part = dict(ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/'))
val_dataloader = dict(workers, dataset=dict(dataset, **train_part, indices=list(range(49, 61)), pipeline=test_pipeline))
test_dataloader = dict(workers, dataset=dict(dataset, pipeline=test_pipeline))
val_evaluator = dict(ann_file=None)
test_evaluator = dict(ann_file='data/balloon/annotations/instances_val2017.json')
train_cfg = dict(max_epochs=max_epochs, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=25),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[16, 22], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=8))
custom_hooks = [dict(type='CheckHook'), dict(type='FiniteLossHook')]
