# Stock ImageNet weights and 40 images a class: plain, or with branches beside the optimizer, of all layers or of one kind.
config = 'bases/lite0.py'
data_root = 'data/'
metric = 'accuracy/top1'
baseline = 'plain'

# As long as the dearest method, all six branches, takes for 10 epochs on a CPU.
_epochs = 13
_longer = {
    'train_cfg.max_epochs': _epochs,
    'default_hooks.checkpoint.interval': _epochs,
    'param_scheduler.1.T_max': _epochs - 1,
    'param_scheduler.1.end': _epochs,
}


def _beside(pattern='backbone', **options):
    return {'default_hooks.branches': dict(type='BranchesHook', pattern=pattern, **options)}


methods = {
    'plain': {},
    f'plain, {_epochs} epochs': _longer,
    'light zeros': _beside(branches='light', start='zeros'),
    'full zeros': _beside(branches='full', start='zeros'),
    'light balanced': _beside(branches='light', start='balanced'),
    'full balanced': _beside(branches='full', start='balanced'),
    'light zeros, fixed scales': _beside(branches='light', start='zeros', scales='fixed'),
    'full zeros, depthwise': _beside(branches='full', start='zeros', pattern='conv_dw'),
    'full zeros, 1x1': _beside(branches='full', start='zeros', kernel_sizes=(1,)),
}

learning_rates = (0.007, 0.016, 0.04, 0.09)
lr_seeds = 2
seeds = 5
