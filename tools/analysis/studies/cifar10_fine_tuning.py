# Fine-tuning on few pictures: a plain network that knows eight of the ten classes goes on plain, or with branches that start in each way.
config = 'bases/resnet18_cifar10_few.py'
data_root = 'data/'
metric = 'accuracy/top1'
baseline = 'plain'

_starts = [(branches, start) for branches in ('full', 'light') for start in ('balanced', 'zeros', 'shared')]
pretrained = {
    'plain': dict(
        config='bases/resnet18_cifar10.py',
        options={
            'model.head.num_classes': 8,
            'data_preprocessor.num_classes': 8,
            'train_dataloader.dataset.indices': 8 * 1600,  # pictures are sorted by class
            'val_dataloader.dataset.indices': 8 * 400,
        },
    ),
    **{
        f'{branches} {start}': dict(of='plain', expand=dict(kernel_sizes=(3, 7), branches=branches, start=start))
        for branches, start in _starts
    },
}

_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='FiniteLossHook')]
methods = {
    'plain': {'model.backbone.init_cfg.checkpoint': 'pretrained:plain'},
    **{
        f'{branches} {start}': {
            'model.backbone.method': 'OREPA',
            'model.backbone.branches': branches,
            'model.backbone.init_cfg.checkpoint': f'pretrained:{branches} {start}',
            'custom_hooks': _hooks,
        }
        for branches, start in _starts
    },
}

learning_rates = (0.003, 0.007, 0.016, 0.04, 0.09)
lr_seeds = 2
seeds = 5
