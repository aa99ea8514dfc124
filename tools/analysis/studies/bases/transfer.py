# What the transfer studies share: two networks pretrained on CIFAR-10, and the methods.
data_root = 'data/'
baseline = 'none'
lr_seeds = 1
seeds = 3

_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='FiniteLossHook')]
pretrained = dict(
    plain=dict(config='bases/resnet18_cifar10.py'),
    OREPA=dict(config='bases/resnet18_cifar10.py', options={'model.backbone.method': 'OREPA', 'custom_hooks': _hooks}),
)

methods = {
    'none': {'model.backbone.init_cfg.checkpoint': 'pretrained:plain'},
    'expanded': {
        'model.backbone.method': 'OREPA',
        'model.backbone.init_cfg.checkpoint': 'pretrained:plain',
        'custom_hooks': _hooks,
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
