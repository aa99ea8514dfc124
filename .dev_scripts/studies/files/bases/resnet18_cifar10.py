# A quarter-width ResNet-18 on pictures of 10 classes, as .dev_scripts/studies/prepare_classes.py lays them out: minutes on one core.
_base_ = [
    '../../../../configs/_base_/orepa_mm.py',
    'mmpretrain::_base_/models/resnet18.py',
    'mmpretrain::_base_/default_runtime.py',
]

max_epochs = 7
size = 32

model = dict(
    backbone=dict(type='OREPAResNet', method='none', stem_channels=32, base_channels=16),
    head=dict(num_classes=10, in_channels=128, topk=(1,)),
)
data_preprocessor = dict(num_classes=10, mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], to_rgb=True)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=size, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='data/cifar10')
loader = dict(batch_size=100, num_workers=0, persistent_workers=False, sampler=dict(type='DefaultSampler', shuffle=False))
train_dataloader = dict(loader, dataset=dict(dataset, data_prefix='train', pipeline=train_pipeline))
train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(loader, dataset=dict(dataset, data_prefix='val', pipeline=test_pipeline))
test_dataloader = dict(loader, dataset=dict(dataset, data_prefix='test', pipeline=test_pipeline))
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(
    constructor='OREPAOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=max_epochs - 1, by_epoch=True, begin=1, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=1, **_base_.safe_hooks.checkpoint), seed=_base_.safe_hooks.seed
)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
