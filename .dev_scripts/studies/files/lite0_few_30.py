# As lite0_few.py, for 30 epochs; 36 take as long as six branches do, 51 as RefConv.
_base_ = './lite0_few.py'

config = 'bases/lite0_few_30.py'


def _longer(epochs):
    return {
        'train_cfg.max_epochs': epochs,
        'default_hooks.checkpoint.interval': epochs,
        'param_scheduler.1.T_max': epochs - 1,
        'param_scheduler.1.end': epochs,
    }


methods = {
    '_delete_': True,
    **{name: options for name, options in _base_.methods.items() if not name.startswith('plain,')},
    **{f'plain, {epochs} epochs': _longer(epochs) for epochs in (36, 51)},
}
