"""Reference blocks of the published implementation, and their state dicts under this project's parameter names."""

from pathlib import Path

import torch

PATH = Path(__file__).parent / 'data' / 'published_blocks.pth'
KXK = dict(
    origin='origin',
    avg='avg_conv',
    freq='pfir_conv',
    seq_1x1='1x1_kxk_idconv1',
    seq_kxk='1x1_kxk_conv2',
    point='1x1',
    dw='gconv_dw',
    pw='gconv_pw',
)
POINTWISE = dict(origin='origin', first='l2i_conv1', second='l2i_conv2')


def load() -> dict:
    return torch.load(PATH, weights_only=True)


def _kxk(state: dict, groups: int) -> dict:
    renamed = {ours: state[f'weight_orepa_{theirs}'] for ours, theirs in KXK.items()}
    # The published grouped branch reads the pointwise rows with the group running fastest.
    rows = torch.arange(len(renamed['pw'])).view(-1, groups).t().reshape(-1)
    return dict(renamed, pw=renamed['pw'][rows], scale=state['vector'])


def kernel_state(state: dict, groups: int = 1) -> dict:
    """State dict of ``OREPAConv2d.kernel`` for the published state dict of one OREPA block."""
    if 'weight_or1x1_origin' in state:
        return dict({ours: state[f'weight_or1x1_{theirs}'] for ours, theirs in POINTWISE.items()}, scale=state['vector'])
    if 'weight_orepa_origin' in state:
        return _kxk(state, groups)
    stages = {}
    for i in range(3):
        if f'weight{i}' in state:
            stages[f'stages.{i}.weight'] = state[f'weight{i}']
        else:
            prefix = f'weight{i}.'
            stage = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            stages.update({f'stages.{i}.{key}': value for key, value in _kxk(stage, groups).items()})
    return stages


DBB = {
    'origin': 'dbb_origin.conv',
    'origin_norm': 'dbb_origin.bn',
    'avg': 'dbb_avg.conv',
    'avg_norm1': 'dbb_avg.bn.bn',
    'avg_norm2': 'dbb_avg.avgbn',
    'point': 'dbb_1x1.conv',
    'point_norm': 'dbb_1x1.bn',
    'seq_1x1': 'dbb_1x1_kxk.idconv1',
    'seq_norm1': 'dbb_1x1_kxk.bn1.bn',
    'seq_kxk': 'dbb_1x1_kxk.conv2',
    'seq_norm2': 'dbb_1x1_kxk.bn2',
}


def dbb_state(state: dict) -> dict:
    """State dict of ``DBBConv2d`` for the published state dict of one DBB."""
    names = {theirs: ours for ours, theirs in DBB.items()}
    return {f'{names[key.rpartition(".")[0]]}.{key.rpartition(".")[2]}': value for key, value in state.items()}
