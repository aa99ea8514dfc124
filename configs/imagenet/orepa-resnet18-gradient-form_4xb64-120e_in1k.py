# Light branches with their scales for five epochs, then plain kernels that train as the branches would, at the plain network's cost.
_base_ = './orepa-resnet18_4xb64-120e_in1k.py'

model = dict(backbone=dict(branches='light'))
custom_hooks = [*_base_.custom_hooks, dict(type='GradientFormHook', epoch=5)]
