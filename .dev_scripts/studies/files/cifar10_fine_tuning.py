# Fine-tuning on few pictures: a plain network that knows eight of the ten classes goes on plain, or with branches that start in each way:
# in the 3x3 layers and the stem, which becomes a deep linear one, or in the 3x3 layers alone.
config = 'bases/resnet18_cifar10_few.py'
data_root = 'data/'
metric = 'accuracy/top1'
baseline = 'plain'

_starts = {
    f'{branches} {start}': dict(kernel_sizes=(3, 7), branches=branches, start=start)
    for branches in ('full', 'light')
    for start in ('balanced', 'zeros', 'shared')
}
_starts |= {
    f'{branches} {start}, plain stem': dict(kernel_sizes=(3,), branches=branches, start=start)
    for branches in ('full', 'light')
    for start in ('balanced', 'zeros')
}
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
    **{name: dict(of='plain', expand=options) for name, options in _starts.items()},
}

_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='FiniteLossHook')]
methods = {
    'plain': {'model.backbone.init_cfg.checkpoint': 'pretrained:plain'},
    **{
        name: {
            'model.backbone.method': 'OREPA',
            'model.backbone.branches': options['branches'],
            'model.backbone.init_cfg.checkpoint': f'pretrained:{name}',
            'custom_hooks': _hooks,
            **({} if 7 in options['kernel_sizes'] else {'model.backbone.plain_stem': True}),
        }
        for name, options in _starts.items()
    },
}

learning_rates = (0.003, 0.007, 0.016, 0.04, 0.09)
lr_seeds = 2
seeds = 5
