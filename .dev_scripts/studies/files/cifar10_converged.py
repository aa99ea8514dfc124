# From scratch on CIFAR-10 for as long as it pays: 60 epochs, where half as many again should give the plain network less than 0.3 points.
# Weight decay is part of the names; of a method's rows the one counts that is best on the validation part.
_base_ = './cifar10_scratch.py'

_epochs = 60


def _for(epochs):
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': 10,
        'param_scheduler.1.T_max': epochs - 1,
        'param_scheduler.1.end': epochs,
    }


_scratch = _base_.methods
_kinds = {
    'plain': _scratch['none'] | _for(_epochs),
    'plain, 90 epochs': _for(90),
    'full': _scratch['OREPA full'] | _for(_epochs),
    'full balanced': _scratch['OREPA full, balanced'] | _for(_epochs),
    'light': _scratch['OREPA light'] | _for(_epochs),
}
baseline = 'plain, decay 0.0005'
methods = {
    '_delete_': True,
    **{
        f'{name}, decay {decay:g}': options | {'optim_wrapper.optimizer.weight_decay': decay}
        for name, options in _kinds.items()
        for decay in (5e-4, 2e-3)
    },
}
learning_rates = (0.05, 0.1, 0.25, 0.6)
lr_seeds = 2
