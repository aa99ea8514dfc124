# A head over all stages of an EfficientNet-Lite0 that has ImageNet weights, on 150 street pictures of CamVid, less those that a study's
# fold tests with. The val part chooses rates.
_base_ = './pspnet_camvid.py'
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
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=[24, 40, 112, 320],
        in_index=(0, 1, 2, 3),
        input_transform='resize_concat',
        channels=128,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        num_classes=19,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    auxiliary_head=None,
)
train_dataloader = dict(dataset=dict(indices=150))
val_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'), indices=None),
)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0))
train_cfg = dict(val_begin=10**6)  # the test that follows is all
default_hooks = dict(checkpoint=dict(interval=300))
custom_hooks = [dict(type='ChannelsLastHook'), dict(type='FixedNormsHook')]
