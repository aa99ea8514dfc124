# The ImageNet recipe on the drawn set: an eighth of the parameters, small pictures, minutes on a CPU.
_base_ = './orepa-resnet18_4xb64-120e_in1k.py'

data_root = 'data/imagenet-mini'
classes = ('circle', 'cross', 'diamond', 'rectangle', 'triangle')
size = 64
max_epochs = 10

model = dict(
    # So short a schedule at so low a rate suits a start that is as large as a plain network's: docs/learning_rate.md.
    backbone=dict(stem_channels=32, base_channels=16, init='balanced'),
    head=dict(num_classes=len(classes), in_channels=128, topk=(1,)),
)
data_preprocessor = dict(num_classes=len(classes))

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].update(scale=size, crop_ratio_range=(0.4, 1.0))
test_pipeline[1].update(scale=size)
test_pipeline[2].update(crop_size=size)
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(batch_size=50, num_workers=2, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(batch_size=50, num_workers=2, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(T_max=max_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_epochs, filename_tmpl='last.pth', max_keep_ckpts=1))
randomness = dict(seed=0)
