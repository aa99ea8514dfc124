# Stock ImageNet weights in a detector: five folds of the photographs with balloons, each seed tests with another.
_base_ = './lite0_few.py'

config = 'bases/mask-rcnn_lite0.py'
metric = 'coco/segm_mAP'
folds = [
    {
        'train_dataloader.dataset.indices': [number for number in range(61) if number % 5 != fold],
        'test_dataloader.dataset.indices': [number for number in range(61) if number % 5 == fold],
    }
    for fold in range(5)
]


def _longer(epochs):
    return {
        'train_cfg.max_epochs': epochs,
        'default_hooks.checkpoint.interval': epochs,
        'param_scheduler.1.end': epochs,
        'param_scheduler.1.milestones': [round(epochs * 2 / 3), epochs - 2],
    }


methods = {
    '_delete_': True,
    **{name: options for name, options in _base_.methods.items() if not name.startswith('plain,')},
    'plain, 28 epochs': _longer(28),  # for 24
}
learning_rates = (0.004, 0.01, 0.022, 0.05)
seeds = 10
