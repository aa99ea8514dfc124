# The PSPNet recipe on the drawn Cityscapes set: a narrow ResNet-18, small pictures, minutes on a CPU.
_base_ = './pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024.py'

data_root = 'data/cityscapes-mini/'
pretrained = 'work_dirs/orepa-resnet18-w16_imagenet-mini/last.pth'
crop_size = (128, 256)
scale = (256, 128)
max_iters = 400

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(depth=18, stem_channels=32, base_channels=16, init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=128, channels=32),
    auxiliary_head=dict(in_channels=64, channels=16),
)

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=scale, ratio_range=(0.75, 1.5))
train_pipeline[3].update(crop_size=crop_size)
test_pipeline[1].update(scale=scale)
train_dataloader = dict(batch_size=8, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=max_iters, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=200, filename_tmpl='last.pth', max_keep_ckpts=1))
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
