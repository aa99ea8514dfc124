"""Parameter names inside one layer or block: those of the published implementations, and those here."""

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import LayoutError
from ..functional import frequency_prior, kernel_of, rows_of
from .reading import under

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
    'depthwise': 'weight_orepa_gconv_dw',
    'pointwise': 'weight_orepa_gconv_pw',
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

EPS = 1e-5  # of the published and of the MM norms, for the norm that a deployed convolution's bias becomes


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {there: here for here, there in names.items()}


def _renamed(state: State, names: dict[str, str]) -> tuple[State, State]:
    """What ``names`` has, a parameter or the module it is of, under the name there; and the rest as it was."""
    renamed, rest = {}, {}
    for key, value in state.items():
        owner, _, leaf = key.rpartition('.')
        if key in names:
            renamed[names[key]] = value
        elif owner in names:
            renamed[f'{names[owner]}.{leaf}'] = value
        else:
            rest[key] = value
    return renamed, rest


def prefixed(prefix: str, state: State) -> State:
    return {f'{prefix}.{key}': value for key, value in state.items()}


def _groups(dw: Tensor, origin: Tensor, expansion: int = 8) -> int:
    return dw.shape[0] // expansion // origin.shape[2]


def _rows(pw: Tensor, groups: int) -> Tensor:
    """Order of the pointwise rows: there the group runs fastest, here channels of a group stand together."""
    return torch.arange(len(pw)).view(-1, groups).t().reshape(-1)


def _expansion(channels: Tensor, groups: int, inner: int, outer: int) -> Tensor:
    """Swap the order of expansion and input channels along the first dimension: there the expansion runs fastest, here the input."""
    return channels.reshape(groups, inner, outer, -1).transpose(1, 2).reshape_as(channels)


def import_kxk(layer: State) -> State:
    """The state dict of an ``OREPAKernel`` from that of a published OREPA layer (constants left out)."""
    kernel, _ = _renamed(layer, _inverse(KXK))
    if not kernel.keys() >= {'depthwise', 'pointwise', 'origin', 'seq_kxk'}:
        raise LayoutError(f'keys of an OREPA layer are missing; it has {", ".join(list(layer)[:3])}')
    kernel |= {name: rows_of(kernel[name]) for name in ('origin', 'seq_kxk')}
    groups, inputs = _groups(kernel['depthwise'], kernel['origin']), kernel['origin'].shape[2]
    kernel['depthwise'] = _expansion(kernel['depthwise'], groups, inputs, 8)
    pw = kernel['pointwise'][_rows(kernel['pointwise'], groups)]
    kernel['pointwise'] = _expansion(pw.transpose(0, 1), 1, inputs, 8).transpose(0, 1).contiguous()
    return kernel


def export_kxk(kernel: State) -> State:
    """The inverse of :func:`import_kxk`, constants included.

    Raises:
        LayoutError: For a layer without the branches that published ones have.
    """
    missing = sorted(KXK.keys() - kernel.keys() - {'point'})
    if missing:
        raise LayoutError(f"the published layers have all branches, and this checkpoint's lack {', '.join(missing)} (branches='light'?)")
    layer, _ = _renamed(kernel, KXK)
    origin, seq_1x1 = kernel['origin'], kernel['seq_1x1']
    groups, inputs = _groups(kernel['depthwise'], origin), origin.shape[2]
    k, (inner, per_group) = math.isqrt(origin.shape[1]), seq_1x1.shape[:2]
    layer |= {KXK[name]: kernel_of(kernel[name], k).contiguous() for name in ('origin', 'seq_kxk')}
    layer[KXK['depthwise']] = _expansion(kernel['depthwise'], groups, 8, inputs)
    pw = torch.empty_like(kernel['pointwise'])
    pw[_rows(pw, groups)] = _expansion(kernel['pointwise'].transpose(0, 1), 1, 8, inputs).transpose(0, 1)
    layer[KXK['pointwise']] = pw
    layer['weight_orepa_avg_avg'] = torch.full((k, k), 1 / (k * k), dtype=origin.dtype)
    layer['id_tensor'] = torch.eye(per_group, dtype=origin.dtype).repeat(inner // per_group, 1).view_as(seq_1x1)
    layer['weight_orepa_prior'] = frequency_prior(len(origin), k, dtype=torch.float64).to(origin.dtype)
    return layer


def deployed_name(layer: State) -> str | None:
    """What a deployed convolution is called in a published layer, such as ``conv`` or ``orepa_reparam``; None in training form."""
    biases = [key for key in layer if re.fullmatch(r'(conv|\w+_reparam)\.bias', key)]
    return biases[0].removesuffix('.bias') if len(biases) == 1 and f'{biases[0].removesuffix("bias")}weight' in layer else None


def _passing_norm(bias: Tensor) -> State:
    ones = torch.ones_like(bias)
    return dict(weight=ones, bias=bias, running_mean=torch.zeros_like(bias), running_var=ones - EPS, num_batches_tracked=torch.tensor(0))


def export_deployed(conv: State, norm: State, name: str) -> State:
    """The inverse of :func:`import_conv` for a deployed layer."""
    expected = _passing_norm(norm['bias'])
    changed = [key for key, value in norm.items() if key != 'num_batches_tracked' and not torch.equal(value, expected[key])]
    if changed:
        raise LayoutError('the norms have been trained since, so there is no deployed form to go back to: export the training form')
    return {f'{name}.weight': conv['weight'], f'{name}.bias': norm['bias']}


def import_conv(layer: State) -> tuple[State, State]:
    """One convolution with its norm, from the published names.

    Returns:
        The state of the MM convolution and of the norm after it; the second is empty for a Diverse Branch Block. The bias of a deployed
        convolution becomes the shift of a norm that passes all else through, as the stock ResNets' convolutions have none.
    """
    norm = under('bn', layer)
    rest = {key: value for key, value in layer.items() if not key.startswith('bn.')}
    name = deployed_name(layer)
    if name is not None:
        conv, norm = {'weight': rest.pop(f'{name}.weight')}, _passing_norm(rest.pop(f'{name}.bias'))
    elif 'conv.weight' in rest:
        conv = {'weight': rest.pop('conv.weight')}
    elif 'weight_or1x1_origin' in rest:
        kernel, rest = _renamed(rest, _inverse(POINTWISE))
        conv = prefixed('kernel', kernel)
    elif 'weight_orepa_origin' in rest:
        conv = prefixed('kernel', import_kxk(rest))
        rest = {key: value for key, value in rest.items() if key not in CONSTANTS and key not in KXK.values()}
    elif any(re.match(r'weight\d', key) for key in rest):
        conv = {}
        for i, stage in sorted(split(rest, r'weight(\d+)')):
            conv |= prefixed(f'kernel.stages.{i}', {'weight': stage['']} if '' in stage else import_kxk(stage))
        rest = {}
    else:
        conv, rest = _renamed(rest, _inverse(DBB))
    if rest or not conv:
        raise LayoutError(f'unknown keys of a convolution: {", ".join(list(rest or layer)[:3])}')
    return conv, norm


def export_conv(conv: State, norm: State) -> State:
    """The inverse of :func:`import_conv`."""
    kernel = under('kernel', conv)
    if 'weight' in conv:
        layer = {'conv.weight': conv['weight']}
    elif 'origin.weight' in conv:
        layer, _ = _renamed(conv, DBB)
    elif 'first' in kernel:
        layer, _ = _renamed(kernel, POINTWISE)
    elif 'depthwise' in kernel:
        layer = export_kxk(kernel)
    else:
        layer = {}
        for i, stage in split(kernel, r'stages\.(\d+)'):
            layer |= {f'weight{i}': stage['weight']} if 'weight' in stage else prefixed(f'weight{i}', export_kxk(stage))
    return prefixed('bn', norm) | layer


def split(state: State, pattern: str) -> Iterator[tuple[str, State]]:
    """The parts of a state dict whose keys begin with ``pattern``, by what its group matches."""
    parts: dict[str, State] = {}
    for key, value in state.items():
        match = re.match(pattern + r'(?:\.|$)', key)
        if match is None:
            raise LayoutError(f'unknown key {key}')
        parts.setdefault(match.group(1), {})[key[match.end() :]] = value
    yield from parts.items()


# Name here -> name there, of the parts of a RepVGG block other than its 3x3 convolution.
BLOCK = {
    'branch_3x3.norm': 'rbr_dense.bn',
    'branch_1x1.conv': 'rbr_1x1.conv',
    'branch_1x1.norm': 'rbr_1x1.bn',
    'branch_norm': 'rbr_identity',
    'branch_reparam': 'rbr_reparam',
    'se_layer.conv1.conv': 'se.down',
    'se_layer.conv2.conv': 'se.up',
}


def import_block(block: State) -> State:
    """One RepVGG or OREPA-RepVGG block of mmpretrain's names, from the published names."""
    imported, rest = _renamed(block, _inverse(BLOCK))
    dense = {}
    for key, value in rest.items():
        if not re.match(r'rbr_dense\.(conv\.)?\w+$', key):
            raise LayoutError(f'unknown key of a RepVGG block: {key}')
        dense[key.removeprefix('rbr_dense.').replace('weight_rbr_', 'weight_orepa_')] = value
    if 'vector' in dense:
        dense['vector'] = dense['vector'][:5]  # beside an identity branch a sixth row is stored, which nothing reads
    return imported | (prefixed('branch_3x3.conv', import_conv(dense)[0]) if dense else {})


def export_block(block: State) -> State:
    """The inverse of :func:`import_block`; a row of ``vector`` that nothing reads comes back as zeros."""
    exported, rest = _renamed(block, BLOCK)
    unknown = [key for key in rest if not key.startswith('branch_3x3.conv.')]
    if unknown:
        raise LayoutError(f'unknown key of a RepVGG block: {unknown[0]}')
    for key, value in export_conv(under('branch_3x3.conv', rest), {}).items():
        if key == 'vector' and 'branch_norm.weight' in block:
            value = torch.cat([value, torch.zeros_like(value[:1])])
        exported[f'rbr_dense.{key.replace("weight_orepa_", "weight_rbr_")}'] = value
    return exported
