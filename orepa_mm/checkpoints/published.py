"""Parameter names of the published networks (ResNet, WideResNet, ResNeXt, RepVGG), and of the MM classifiers they become.

Covers the layouts of the OREPA, Diverse Branch Block and RepVGG publications, which are one family, in training and deployed form.
"""

import re

from ..errors import LayoutError
from .published_layers import State, deployed_name, export_block, export_conv, export_deployed, import_block, import_conv, prefixed, split
from .reading import under

CONVOLUTION = r'(stage0\.conv1|stage[1-4]\.\d+\.(?:conv[123]|shortcut))'
BLOCK = r'(stage0|stage[1-4]\.\d+)'


def import_network(state: State) -> State:
    """The MM classifier's state dict from a published network's.

    Raises:
        LayoutError: For a key that a published network does not have.
    """
    layers, head = _without_head(state, 'linear')
    return (_import_repvgg if any('.rbr_' in key for key in state) else _import_resnet)(layers) | prefixed('head.fc', head)


def _without_head(state: State, name: str) -> tuple[State, State]:
    layers = {key: value for key, value in state.items() if not key.startswith(f'{name}.')}
    return layers, under(name, state)


def export_network(state: State, deployed: dict[str, str] | None = None) -> State:
    """The inverse of :func:`import_network`.

    Args:
        state: The MM classifier's state dict.
        deployed: What :func:`deployed_names` gave for the published network.

    Raises:
        LayoutError: For a key that such a classifier does not have.
    """
    layers, head = _without_head(state, 'head.fc')
    repvgg = any(key.startswith('backbone.stem.branch_') for key in state)
    return (_export_repvgg(layers) if repvgg else _export_resnet(layers, deployed or {})) | prefixed('linear', head)


def deployed_names(state: State) -> dict[str, str]:
    """What each convolution of a published ResNet in deployed form is called; empty for other networks."""
    if any('.rbr_' in key for key in state):
        return {}
    names = {location: deployed_name(layer) for location, layer in split(_without_head(state, 'linear')[0], CONVOLUTION)}
    return {location: name for location, name in names.items() if name is not None}


def _place(location: str) -> tuple[str, str]:
    """MM's paths of the convolution and of its norm for a published location such as ``stage2.0.conv1``."""
    stage, *block, conv = location.split('.')
    if stage == 'stage0':
        return 'backbone.conv1', 'backbone.bn1'
    parent = f'backbone.layer{stage.removeprefix("stage")}.{block[0]}'
    if conv == 'shortcut':
        return f'{parent}.downsample.0', f'{parent}.downsample.1'
    return f'{parent}.{conv}', f'{parent}.bn{conv.removeprefix("conv")}'


def _import_resnet(layers: State) -> State:
    converted: State = {}
    for location, layer in split(layers, CONVOLUTION):
        conv_path, norm_path = _place(location)
        conv, norm = import_conv(layer)
        converted |= prefixed(conv_path, conv) | prefixed(norm_path, norm)
    return converted


def _export_resnet(layers: State, deployed: dict[str, str]) -> State:
    convs: dict[str, State] = {}
    norms: dict[str, State] = {}
    for key, value in layers.items():
        match = re.match(r'backbone\.(?:layer([1-4])\.(\d+)\.)?(conv|bn|downsample\.)(\d)\.', key)
        if match is None:
            raise LayoutError(f'unknown key {key}')
        stage, block, kind, number = match.groups()
        prefix = f'stage{stage}.{block}' if stage else 'stage0'
        location = f'{prefix}.shortcut' if kind == 'downsample.' else f'{prefix}.conv{number}'
        is_norm = kind == 'bn' or (kind == 'downsample.' and number == '1')
        (norms if is_norm else convs).setdefault(location, {})[key[match.end() :]] = value
    exported: State = {}
    for location, conv in convs.items():
        norm = norms.pop(location, {})
        layer = export_deployed(conv, norm, deployed[location]) if location in deployed else export_conv(conv, norm)
        exported |= prefixed(location, layer)
    if norms:
        raise LayoutError(f'norms without a convolution: {", ".join(norms)}')
    return exported


def _import_repvgg(layers: State) -> State:
    converted: State = {}
    for location, block in split(layers, BLOCK):
        path = 'backbone.stem' if location == 'stage0' else f'backbone.{location.replace("stage", "stage_")}'
        converted |= prefixed(path, import_block(block))
    return converted


def _export_repvgg(layers: State) -> State:
    exported: State = {}
    for location, block in split(layers, r'backbone\.(stem|stage_[1-4]\.\d+)'):
        path = 'stage0' if location == 'stem' else location.replace('stage_', 'stage')
        exported |= prefixed(path, export_block(block))
    return exported
