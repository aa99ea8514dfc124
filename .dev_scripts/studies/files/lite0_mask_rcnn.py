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

methods = {
    '_delete_': True,
    'plain': {},
    **_base_._branched,
    'plain, 28 epochs': {  # for 24
        'train_cfg.max_epochs': 28,
        'default_hooks.checkpoint.interval': 28,
        'param_scheduler.1.end': 28,
        'param_scheduler.1.milestones': [19, 26],
    },
}
learning_rates = (0.004, 0.01, 0.022, 0.05)
seeds = 10
