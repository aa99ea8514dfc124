# What the transfer studies share: two networks pretrained on CIFAR-10, one of them expanded in several ways, and the methods.
data_root = 'data/'
baseline = 'none'
lr_seeds = 1
seeds = 3

_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='FiniteLossHook')]
_expanded = {
    'expanded, balanced': dict(branches='full', start='balanced'),
    'expanded, zeros': dict(branches='full', start='zeros'),
    'expanded, light zeros': dict(branches='light', start='zeros'),
}
pretrained = {
    'plain': dict(config='bases/resnet18_cifar10.py'),
    'OREPA': dict(config='bases/resnet18_cifar10.py', options={'model.backbone.method': 'OREPA', 'custom_hooks': _hooks}),
    **{name: dict(of='plain', expand=dict(kernel_sizes=(3, 7), **options)) for name, options in _expanded.items()},
}

methods = {
    'none': {'model.backbone.init_cfg.checkpoint': 'pretrained:plain'},
    **{
        name: {
            'model.backbone.method': 'OREPA',
            'model.backbone.branches': options['branches'],
            'model.backbone.init_cfg.checkpoint': f'pretrained:{name}',
            'custom_hooks': _hooks,
        }
        for name, options in _expanded.items()
    },
    **{
        f'OREPA, stem {mult:g}': {
            'model.backbone.method': 'OREPA',
            'model.backbone.init_cfg.checkpoint': 'pretrained:OREPA',
            'custom_hooks': _hooks,
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.conv1.lr_mult': mult,
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.bn1.lr_mult': mult,
        }
        for mult in (0.03, 0.1, 0.3, 1.0)
    },
}
