# EfficientNet-Lite0 with ImageNet weights (.dev_scripts/studies/prepare_lite0.py) on 40 images a class of CIFAR-10, at 96 pixels.
_base_ = [
    '../../../../configs/_base_/orepa_mm.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['orepa_mm', 'study_hooks'], allow_failed_imports=False)

max_epochs = 10
images = 40  # a class

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        bn_momentum=0.1,  # 100 steps are few for TensorFlow's 0.01
        init_cfg=dict(type='Pretrained', checkpoint='data/efficientnet-lite0.pth', prefix='backbone.'),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=1280, topk=(1,), loss=dict(type='CrossEntropyLoss')),
)
data_preprocessor = dict(num_classes=10, mean=[127.0] * 3, std=[128.0] * 3, to_rgb=True)

resize = dict(type='Resize', scale=(96, 96), interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    resize,
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='data/cifar10')
loader = dict(batch_size=40, num_workers=0, persistent_workers=False, sampler=dict(type='DefaultSampler', shuffle=False))
train_dataloader = dict(
    loader,
    sampler=dict(type='DefaultSampler', shuffle=True),
    # Images are sorted by class, 1,600 each.
    dataset=dict(dataset, data_prefix='train', pipeline=train_pipeline, indices=list(range(0, 16000, 1600 // images))),
)
# Half of the validation part, 2,000 images.
val_dataloader = dict(loader, dataset=dict(dataset, data_prefix='val', pipeline=test_pipeline, indices=list(range(0, 4000, 2))))
test_dataloader = dict(loader, dataset=dict(dataset, data_prefix='test', pipeline=test_pipeline))
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=max_epochs - 1, by_epoch=True, begin=1, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_begin=max_epochs + 1000)  # the test that follows is all
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1, **_base_.safe_hooks.checkpoint),
    seed=_base_.safe_hooks.seed,
)
custom_hooks = [dict(type='ChannelsLastHook')]
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
