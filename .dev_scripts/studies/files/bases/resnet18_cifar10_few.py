# 40 pictures of each of the ten classes, from a pretrained backbone.
_base_ = './resnet18_cifar10.py'

max_epochs = 20

model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='pretrained:plain', prefix='backbone.')))
train_dataloader = dict(batch_size=50, dataset=dict(indices=list(range(0, 16000, 40))))  # pictures are sorted by class, 1,600 each
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=max_epochs - 2, by_epoch=True, begin=2, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
