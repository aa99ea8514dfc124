# The authors' ImageNet recipe: 4 GPUs x 64 pictures, 120 epochs, cosine decay in every iteration.
_base_ = [
    './orepa_mm.py',
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    'mmpretrain::_base_/schedules/imagenet_bs256_coslr.py',
    'mmpretrain::_base_/default_runtime.py',
]

# No decay on biases and norms, twice the learning rate on biases; those of norms count as biases.
optim_wrapper = dict(
    constructor='OREPAOptimWrapperConstructor',
    optimizer=dict(fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'.bias': dict(lr_mult=2.0, decay_mult=0.0)}),
)
param_scheduler = dict(T_max=120, end=120, convert_to_iter_based=True)
train_cfg = dict(max_epochs=120)
default_hooks = dict(_base_.safe_hooks, checkpoint=dict(max_keep_ckpts=3, **_base_.safe_hooks.checkpoint))
custom_hooks = []  # of your own; the hooks here are default_hooks
