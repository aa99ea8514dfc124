# Stock ImageNet weights in a segmentor: five folds of street pictures, each seed tests with another stretch of the drives.
_base_ = './lite0_few.py'

config = 'bases/fcn_lite0.py'
metric = 'mIoU'
folds = [
    {
        'train_dataloader.dataset.indices': [number for number in range(150) if number // 30 != fold],
        'test_dataloader.dataset.indices': [number for number in range(150) if number // 30 == fold],
    }
    for fold in range(5)
]


def _longer(iterations):
    return {'train_cfg.max_iters': iterations, 'default_hooks.checkpoint.interval': iterations, 'param_scheduler.0.end': iterations}


methods = {
    '_delete_': True,
    **{name: options for name, options in _base_.methods.items() if not name.startswith('plain,')},
    'plain, 360 steps': _longer(360),  # for 300
}
learning_rates = (0.007, 0.016, 0.04, 0.09)
seeds = 10
