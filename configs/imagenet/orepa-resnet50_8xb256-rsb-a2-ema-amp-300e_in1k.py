# Beyond the paper: mmpretrain's strong ResNet recipe (ResNet Strikes Back, A2), with averaged weights and mixed precision.
_base_ = ['../_base_/orepa_mm.py', 'mmpretrain::resnet/resnet50_8xb256-rsb-a2-300e_in1k.py']

model = dict(backbone=dict(type='OREPAResNet'))
optim_wrapper = dict(type='AmpOptimWrapper')
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')]
default_hooks = dict(_base_.safe_hooks, checkpoint=dict(max_keep_ckpts=3, **_base_.safe_hooks.checkpoint))
