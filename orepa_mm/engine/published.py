"""Parameter names of the published implementation's ResNets, and of the MM classifiers they become."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from ..functional import frequency_prior

State = dict[str, Tensor]

# Name here -> name there, inside one layer.
KXK = {
    'scale': 'vector',
    'origin': 'weight_orepa_origin',
    'avg': 'weight_orepa_avg_conv',
    'freq': 'weight_orepa_pfir_conv',
    'seq_1x1': 'weight_orepa_1x1_kxk_idconv1',
    'seq_kxk': 'weight_orepa_1x1_kxk_conv2',
    'point': 'weight_orepa_1x1',
    'dw': 'weight_orepa_gconv_dw',
    'pw': 'weight_orepa_gconv_pw',
}
POINTWISE = {
    'scale': 'vector',
    'origin': 'weight_or1x1_origin',
    'first': 'weight_or1x1_l2i_conv1',
    'second': 'weight_or1x1_l2i_conv2',
}
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
# Constants the published checkpoints store; they follow from the shapes.
CONSTANTS = ('weight_orepa_avg_avg', 'id_tensor', 'weight_orepa_prior')


class UnknownKeyError(ValueError):
    """A state dict has a key that is not of the layout it should be of."""


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {there: here for here, there in names.items()}


def _groups(dw: Tensor, origin: Tensor, expansion: int = 8) -> int:
    return dw.shape[0] // expansion // origin.shape[1]


def _rows(pw: Tensor, groups: int) -> Tensor:
    """Order of the pointwise rows: there the group runs fastest, here channels of a group stand together."""
    return torch.arange(len(pw)).view(-1, groups).t().reshape(-1)


def import_kxk(layer: State) -> State:
    """The state dict of an ``OREPAKernel`` from that of a published OREPA layer (constants left out)."""
    names = _inverse(KXK)
    kernel = {names[key]: value for key, value in layer.items() if key in names}
    kernel['pw'] = kernel['pw'][_rows(kernel['pw'], _groups(kernel['dw'], kernel['origin']))]
    return kernel


def export_kxk(kernel: State) -> State:
    """The inverse of :func:`import_kxk`, constants included."""
    layer = {KXK[key]: value for key, value in kernel.items()}
    origin, seq_1x1 = kernel['origin'], kernel['seq_1x1']
    groups = _groups(kernel['dw'], origin)
    pw = torch.empty_like(kernel['pw'])
    pw[_rows(pw, groups)] = kernel['pw']
    k, (inner, per_group) = origin.shape[-1], seq_1x1.shape[:2]
    layer[KXK['pw']] = pw
    layer['weight_orepa_avg_avg'] = torch.full((k, k), 1 / (k * k), dtype=origin.dtype)
    layer['id_tensor'] = torch.eye(per_group, dtype=origin.dtype).repeat(inner // per_group, 1).view_as(seq_1x1)
    layer['weight_orepa_prior'] = frequency_prior(len(origin), k, dtype=torch.float64).to(origin.dtype)
    return layer


def import_conv(layer: State) -> tuple[State, State]:
    """One convolution with its norm, from the published names.

    Returns:
        The state of the MM convolution and of the norm after it; the second is empty for a Diverse Branch Block.
    """
    norm = {key.removeprefix('bn.'): value for key, value in layer.items() if key.startswith('bn.')}
    rest = {key: value for key, value in layer.items() if not key.startswith('bn.')}
    if 'conv.weight' in rest:
        conv = {'weight': rest.pop('conv.weight')}
    elif 'weight_or1x1_origin' in rest:
        conv = {f'kernel.{here}': rest.pop(there) for here, there in POINTWISE.items() if there in rest}
    elif 'weight_orepa_origin' in rest:
        conv = {f'kernel.{key}': value for key, value in import_kxk(rest).items()}
        rest = {key: value for key, value in rest.items() if key not in CONSTANTS and key not in KXK.values()}
    elif any(re.match(r'weight\d', key) for key in rest):
        conv = {}
        for i, stage in sorted(_split(rest, r'weight(\d+)')):
            kernel = {'weight': stage['']} if '' in stage else import_kxk(stage)
            conv |= {f'kernel.stages.{i}.{key}': value for key, value in kernel.items()}
        rest = {}
    elif any(key.startswith('dbb_') for key in rest):
        names = _inverse(DBB)
        conv = {}
        for key in list(rest):
            owner, _, leaf = key.rpartition('.')
            if owner in names:
                conv[f'{names[owner]}.{leaf}'] = rest.pop(key)
    else:
        conv = {}
    if rest or not conv:
        raise UnknownKeyError(f'unknown keys of a convolution: {", ".join(list(rest or layer)[:3])}')
    return conv, norm


def export_conv(conv: State, norm: State) -> State:
    """The inverse of :func:`import_conv`."""
    layer = {f'bn.{key}': value for key, value in norm.items()}
    kernel = {key.removeprefix('kernel.'): value for key, value in conv.items() if key.startswith('kernel.')}
    if 'weight' in conv:
        layer['conv.weight'] = conv['weight']
    elif 'origin.weight' in conv:
        for key, value in conv.items():
            owner, _, leaf = key.rpartition('.')
            layer[f'{DBB[owner]}.{leaf}'] = value
    elif 'first' in kernel:
        layer |= {POINTWISE[key]: value for key, value in kernel.items()}
    elif 'dw' in kernel:
        layer |= export_kxk(kernel)
    else:
        for i, stage in _split(kernel, r'stages\.(\d+)'):
            if 'weight' in stage:
                layer[f'weight{i}'] = stage['weight']
            else:
                layer |= {f'weight{i}.{key}': value for key, value in export_kxk(stage).items()}
    return layer


def _split(state: State, pattern: str) -> Iterator[tuple[str, State]]:
    """The parts of a state dict whose keys begin with ``pattern``, by what its group matches."""
    parts: dict[str, State] = {}
    for key, value in state.items():
        match = re.match(pattern + r'(?:\.|$)', key)
        if match is None:
            raise UnknownKeyError(f'unknown key {key}')
        parts.setdefault(match.group(1), {})[key[match.end() :]] = value
    yield from parts.items()


def _place(location: str) -> tuple[str, str]:
    """MM's paths of the convolution and of its norm for a published location such as ``stage2.0.conv1``."""
    stage, *block, conv = location.split('.')
    if stage == 'stage0':
        return 'backbone.conv1', 'backbone.bn1'
    parent = f'backbone.layer{stage.removeprefix("stage")}.{block[0]}'
    if conv == 'shortcut':
        return f'{parent}.downsample.0', f'{parent}.downsample.1'
    return f'{parent}.{conv}', f'{parent}.bn{conv.removeprefix("conv")}'


def import_resnet(state: State) -> State:
    """The MM classifier's state dict from the published ResNet's or ResNeXt's.

    Raises:
        UnknownKeyError: For a key that a published ResNet in training form does not have.
    """
    converted = {}
    layers = {key: value for key, value in state.items() if not key.startswith('linear.')}
    for location, layer in _split(layers, r'(stage0\.conv1|stage[1-4]\.\d+\.(?:conv[123]|shortcut))'):
        conv_path, norm_path = _place(location)
        conv, norm = import_conv(layer)
        converted |= {f'{conv_path}.{key}': value for key, value in conv.items()}
        converted |= {f'{norm_path}.{key}': value for key, value in norm.items()}
    return converted | {key.replace('linear.', 'head.fc.'): value for key, value in state.items() if key.startswith('linear.')}


def export_resnet(state: State) -> State:
    """The inverse of :func:`import_resnet`.

    Raises:
        UnknownKeyError: For a key that such a classifier does not have.
    """
    convs: dict[str, State] = {}
    norms: dict[str, State] = {}
    exported = {}
    for key, value in state.items():
        if key.startswith('head.fc.'):
            exported[key.replace('head.fc.', 'linear.')] = value
            continue
        match = re.match(r'backbone\.(?:layer([1-4])\.(\d+)\.)?(conv|bn|downsample\.)(\d)\.', key)
        if match is None:
            raise UnknownKeyError(f'unknown key {key}')
        stage, block, kind, number = match.groups()
        prefix = f'stage{stage}.{block}' if stage else 'stage0'
        location = f'{prefix}.shortcut' if kind == 'downsample.' else f'{prefix}.conv{number}'
        is_norm = kind == 'bn' or (kind == 'downsample.' and number == '1')
        (norms if is_norm else convs).setdefault(location, {})[key[match.end() :]] = value
    for location, conv in convs.items():
        layer = export_conv(conv, norms.pop(location, {}))
        exported |= {f'{location}.{key}': value for key, value in layer.items()}
    if norms:
        raise UnknownKeyError(f'norms without a convolution: {", ".join(norms)}')
    return exported
