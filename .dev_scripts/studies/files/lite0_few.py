# Stock ImageNet weights and 40 images a class: plain, or with branches beside the optimizer, of all layers or of one kind.
config = 'bases/lite0.py'
data_root = 'data/'
metric = 'accuracy/top1'
baseline = 'plain'
_longer = {
    epochs: {
        'train_cfg.max_epochs': epochs,
        'default_hooks.checkpoint.interval': epochs,
        'param_scheduler.1.T_max': epochs - 1,
        'param_scheduler.1.end': epochs,
    }
    for epochs in (5, 7, 12, 17, 36, 51)
}


def _beside(pattern='backbone', **options):
    return {'default_hooks.branches': dict(type='BranchesHook', pattern=pattern, **options)}


_branched = {
    'light zeros': _beside(branches='light', start='zeros'),
    'full zeros': _beside(branches='full', start='zeros'),
    'RefConv': _beside(method='RefConv'),
    # The first steps of the 3x3 and 5x5 kernels are about as long as plain ones then.
    'RefConv, rate 0.01': _beside(method='RefConv') | {'optim_wrapper.paramwise_cfg': dict(custom_keys={'conv_dw': dict(lr_mult=0.01)})},
    'light balanced': _beside(branches='light', start='balanced'),
    'full balanced': _beside(branches='full', start='balanced'),
    'light zeros, fixed scales': _beside(branches='light', start='zeros', scales='fixed'),
    'light zeros, without freq': _beside(branches=('origin', 'avg', 'point'), start='zeros'),
    'full zeros, depthwise': _beside(branches='full', start='zeros', pattern='conv_dw'),
    'full zeros, 1x1': _beside(branches='full', start='zeros', kernel_sizes=(1,)),
}
methods = {
    'plain': {},
    'plain, 12 epochs': _longer[12],  # as long as all six branches take for 10 epochs on a CPU
    'plain, 17 epochs': _longer[17],  # as long as RefConv
    **_branched,
}

learning_rates = (0.007, 0.016, 0.04)
lr_seeds = 2
seeds = 5
