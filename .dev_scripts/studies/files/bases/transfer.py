# What the transfer studies share: two networks pretrained on CIFAR-10, each at the rate that suits it best in cifar10_scratch.py, the plain
# one expanded in several ways, and the methods. A plain network and the expanded one have no multiplier, as in the toolboxes' own recipes.
data_root = 'data/'
baseline = 'none'
lr_seeds = 1
seeds = 3

_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='FiniteLossHook')]
_keys = 'optim_wrapper.paramwise_cfg.custom_keys'
_stem = {mult: {f'{_keys}.backbone.{name}.lr_mult': mult for name in ('conv1', 'bn1')} for mult in (0.03, 0.1, 0.3, 1.0)}
_expanded = {
    'expanded, balanced': dict(kernel_sizes=(3,), branches='full', start='balanced'),
    'expanded, zeros': dict(kernel_sizes=(3,), branches='full', start='zeros'),
    'expanded, light zeros': dict(kernel_sizes=(3,), branches='light', start='zeros'),
    'expanded, balanced, and its stem': dict(kernel_sizes=(3, 7), branches='full', start='balanced'),
}
pretrained = {
    'plain': dict(config='bases/resnet18_cifar10.py', options={'optim_wrapper.optimizer.lr': 0.25}),
    'OREPA': dict(
        config='bases/resnet18_cifar10.py',
        options={'model.backbone.method': 'OREPA', 'optim_wrapper.optimizer.lr': 0.6, 'custom_hooks': _hooks},
    ),
    **{name: dict(of='plain', expand=options) for name, options in _expanded.items()},
}

methods = {
    'none': {'model.backbone.init_cfg.checkpoint': 'pretrained:plain', **_stem[1.0]},
    # What a backbone that learns more slowly than its head is worth without branches.
    'none, backbone 0.1': {'model.backbone.init_cfg.checkpoint': 'pretrained:plain', **_stem[0.1], f'{_keys}.backbone.lr_mult': 0.1},
    **{
        name: {
            'model.backbone.method': 'OREPA',
            'model.backbone.branches': options['branches'],
            'model.backbone.init_cfg.checkpoint': f'pretrained:{name}',
            'model.backbone.plain_stem': 7 not in options['kernel_sizes'],
            'custom_hooks': _hooks,
            **_stem[1.0],
        }
        for name, options in _expanded.items()
    },
    **{
        f'OREPA, stem {mult:g}': {
            'model.backbone.method': 'OREPA',
            'model.backbone.init_cfg.checkpoint': 'pretrained:OREPA',
            'custom_hooks': _hooks,
            **options,
        }
        for mult, options in _stem.items()
    },
}
