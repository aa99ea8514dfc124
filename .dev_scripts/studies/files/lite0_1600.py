# As lite0_few.py, with all 1,600 images a class for 4 epochs; five take as long as six branches do, seven as RefConv.
_base_ = './lite0_few.py'

config = 'bases/lite0_1600.py'
methods = {
    '_delete_': True,
    'plain': {},
    **_base_._branched,
    **{f'plain, {epochs} epochs': _base_._longer[epochs] for epochs in (5, 7)},
}
