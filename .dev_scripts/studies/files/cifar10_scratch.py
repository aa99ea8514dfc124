# From scratch on CIFAR-10: methods, fewer branches, their scales fixed, and branches that start at a plain layer's kernel.
config = 'bases/resnet18_cifar10.py'
data_root = 'data/'
metric = 'accuracy/top1'
baseline = 'none'

_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='FiniteLossHook')]
# As much time on a CPU as OREPA full takes for its 7 epochs.
_longer = {'train_cfg.max_epochs': 11, 'param_scheduler.1.T_max': 10, 'param_scheduler.1.end': 11}
_orepa = {'model.backbone.method': 'OREPA', 'custom_hooks': _hooks}
# In the runs of docs/studies, from which the names are, scales trained for an epoch, from a published start, before they were fixed.
_fixed = {'default_hooks.branches': dict(type='BranchesHook', branches='light', scales='fixed')}
methods = {
    'none': {},
    'none, 11 epochs': _longer,
    'OREPA full': _orepa,
    'OREPA light': _orepa | {'model.backbone.branches': 'light'},
    'OREPA light, gradient form': _fixed,
    'OREPA light, gradient form, 11 epochs': _fixed | _longer,
    'OREPA full, balanced': _orepa | {'model.backbone.init': 'balanced'},
    'DBB': {'model.backbone.method': 'DBB', 'custom_hooks': _hooks},
}

learning_rates = (0.05, 0.1, 0.25, 0.6, 1.5)
lr_seeds = 1
seeds = 5
