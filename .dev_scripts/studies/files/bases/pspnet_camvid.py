# PSPNet on 90 street pictures of 320 x 240, laid out as Cityscapes. The training part is frames of three drives in their order: every fifth
# validates and every fifth tests. The val part, some seconds at one place, would test how well that place is known.
_base_ = '../../../../configs/cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py'

crop_size = (160, 256)
scale = (320, 240)
max_iters = 300

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(method='none', stem_channels=32, init_cfg=dict(checkpoint='pretrained:plain')),
)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=scale)
train_pipeline[3].update(crop_size=crop_size)
test_pipeline[1].update(scale=scale)
workers = dict(num_workers=0, persistent_workers=False)
frames = dict(
    data_root='data/camvid_cityscapes/',
    data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
)
train_part = [number for number in range(150) if number % 5 not in (2, 4)]
train_dataloader = dict(workers, batch_size=4, dataset=dict(frames, indices=train_part, pipeline=train_pipeline))
val_dataloader = dict(workers, dataset=dict(frames, indices=list(range(2, 150, 5)), pipeline=test_pipeline))
test_dataloader = dict(workers, dataset=dict(frames, indices=list(range(4, 150, 5)), pipeline=test_pipeline))
train_cfg = dict(max_iters=max_iters, val_interval=100)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=100))
custom_hooks = [dict(type='CheckHook'), dict(type='FiniteLossHook')]
