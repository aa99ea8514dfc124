# As lite0_few.py, for 30 epochs; 36 take as long as six branches do, 51 as RefConv.
_base_ = './lite0_few.py'

config = 'bases/lite0_few_30.py'
methods = {
    '_delete_': True,
    'plain': {},
    **_base_._branched,
    **{f'plain, {epochs} epochs': _base_._longer[epochs] for epochs in (36, 51)},
}
