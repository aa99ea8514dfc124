# Mask R-CNN with an EfficientNet-Lite0 that has ImageNet weights, on the 61 photographs of the training part, less those that a study's
# fold tests with. The val part chooses rates.
_base_ = './mask-rcnn_balloon.py'
custom_imports = dict(imports=['mmpretrain.models', 'study_hooks'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        features_only=True,
        out_indices=(1, 2, 3, 4),
        init_cfg=dict(type='Pretrained', checkpoint='data/efficientnet-lite0.pth', prefix='backbone.'),
    ),
    # Without a norm behind them Lite0's linear stages are too large for heads as drawn.
    neck=dict(in_channels=[24, 40, 112, 320], norm_cfg=dict(type='GN', num_groups=16)),
)
train_dataloader = dict(dataset=dict(indices=61))
val_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/'), indices=None),
)
test_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/')),
)
test_evaluator = dict(ann_file=None)  # of a part of the file
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0))
train_cfg = dict(val_begin=10**6)  # the test that follows is all
default_hooks = dict(checkpoint=dict(interval=24))
custom_hooks = [dict(type='ChannelsLastHook'), dict(type='FixedNormsHook')]
