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

methods = {
    '_delete_': True,
    'plain': {},
    **_base_._branched,
    # For 300.
    'plain, 360 steps': {'train_cfg.max_iters': 360, 'default_hooks.checkpoint.interval': 360, 'param_scheduler.0.end': 360},
}
learning_rates = (0.007, 0.016, 0.04, 0.09)
seeds = 10
