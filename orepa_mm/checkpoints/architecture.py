"""Telling an architecture from the keys and shapes of a classifier's state dict."""

import re
from typing import Any

from torch import Tensor

from ..errors import LayoutError
from ..layers import METHODS

DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {  # blocks of the four stages, whether bottlenecks
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def _kernel_shape(state: dict[str, Tensor], conv: str) -> tuple[int, int]:
    """Output channels, and input channels of a group."""
    for last, first in (('weight', 'weight'), *(keys for layer in METHODS.values() for keys in layer.kernel_keys)):
        if f'{conv}.{last}' in state and f'{conv}.{first}' in state:
            shape = state[f'{conv}.{first}'].shape
            return len(state[f'{conv}.{last}']), shape[2] if len(shape) == 3 else shape[1]  # three: in rows
    raise LayoutError(f'no kernel found for {conv}: this is no ResNet classifier')


def recognise(state: dict[str, Tensor]) -> dict[str, Any]:
    """The mmpretrain config of the OREPA backbone that a classifier's state dict belongs to.

    Args:
        state: Keys as of an mmpretrain ``ImageClassifier``: ``backbone.layer1.0.conv1...`` or ``backbone.stage_1.0.branch_3x3...``.

    Raises:
        LayoutError: When no known architecture has such keys or shapes.
    """
    return (_recognise_repvgg if any(key.startswith('backbone.stem.branch_') for key in state) else _recognise_resnet)(state)


def _blocks(state: dict[str, Tensor], stage: str) -> tuple[int, ...]:
    """Number of blocks in each of the four stages, whose keys begin with ``stage`` and the stage's number."""
    numbers = [{m.group(1) for m in (re.match(rf'{stage}{i}\.(\d+)\.', key) for key in state) if m} for i in (1, 2, 3, 4)]
    return tuple(map(len, numbers))


def _recognise_resnet(state: dict[str, Tensor]) -> dict[str, Any]:
    counts = _blocks(state, r'backbone\.layer')
    bottleneck = any(key.startswith('backbone.layer1.0.conv3.') for key in state)
    if (counts, bottleneck) not in DEPTHS:
        raise LayoutError(f'{counts} {"bottleneck" if bottleneck else "basic"} blocks a stage is no ResNet known here')
    method = next((name for name, layer in METHODS.items() if any(layer.key_mark in key for key in state)), 'none')
    last = _kernel_shape(state, f'backbone.layer1.0.conv{3 if bottleneck else 2}')
    base = last[0] // 4 if bottleneck else last[0]
    stem = _kernel_shape(state, 'backbone.conv1')[0]
    config = dict(type='OREPAResNet', depth=DEPTHS[counts, bottleneck], method=method, stem_channels=stem, base_channels=base)
    if bottleneck:
        width, per_group = _kernel_shape(state, 'backbone.layer1.0.conv2')
        if per_group != width:
            groups = width // per_group
            config.update(type='OREPAResNeXt', groups=groups, width_per_group=per_group)
    return config


def _recognise_repvgg(state: dict[str, Tensor]) -> dict[str, Any]:
    from mmpretrain.models.backbones import RepVGG

    deploy = any('.branch_reparam.' in key for key in state)
    conv = 'branch_reparam' if deploy else 'branch_3x3.conv'
    counts = _blocks(state, r'backbone\.stage_')
    shapes = [_kernel_shape(state, f'backbone.stage_{i + 1}.{j}.{conv}') for i, count in enumerate(counts) for j in range(count)]
    if not all(counts):
        raise LayoutError(f'{counts} blocks a stage is no RepVGG known here')
    firsts = [shapes[sum(counts[:i])] for i in range(4)]
    inputs = [_kernel_shape(state, f'backbone.stem.{conv}')[0]] + [shape[0] for shape in shapes[:-1]]
    groups = {i: before // shape[1] for i, (before, shape) in enumerate(zip(inputs, shapes, strict=True), 1) if before != shape[1]}
    found = dict(
        num_blocks=list(counts),
        width_factor=[shape[0] / (64 * 2**i) for i, shape in enumerate(firsts)],
        group_layer_map=groups or None,
        se_cfg=None,
    )
    if any('.se_layer.' in key for key in state):
        found['se_cfg'] = RepVGG.arch_settings['D2se']['se_cfg']
    known = [name for name, arch in RepVGG.arch_settings.items() if all(arch[key] == value for key, value in _used(found, arch).items())]
    method = 'OREPA' if any('.kernel.' in key for key in state) else 'RepVGG'
    config = dict(type='OREPARepVGG', arch=known[0] if known else found, method=method)
    return dict(config, deploy=True) if deploy else config


def _used(found: dict[str, Any], arch: dict[str, Any]) -> dict[str, Any]:
    """``found`` with the groups of ``arch`` where these differ in layers the network does not have."""
    layers, declared = sum(found['num_blocks']), arch['group_layer_map'] or {}
    same = {i: g for i, g in declared.items() if i <= layers} == (found['group_layer_map'] or {})
    return dict(found, group_layer_map=arch['group_layer_map']) if same else found


def name_of(config: dict[str, Any]) -> str:
    """The usual name, such as ``resnet50``, ``wideresnet18-x1.5``, ``resnext50-32x4d`` or ``repvgg-a0``; other widths get a suffix."""
    if config['type'] == 'OREPARepVGG':
        arch = config['arch']
        if isinstance(arch, str):
            return f'repvgg-{arch.lower()}'
        return f'repvgg-{"-".join(map(str, arch["num_blocks"]))}-w{"-".join(f"{width:g}" for width in arch["width_factor"])}'
    depth, width = config['depth'], config['base_channels'] / 64
    if config['type'] == 'OREPAResNeXt':
        name = f'resnext{depth}-{config["groups"]}x{config["width_per_group"]}d'
    elif width in (1.5, 2):
        return f'wideresnet{depth}-x{width:g}'
    else:
        name = f'resnet{depth}'
    return name if width == 1 else f'{name}-w{width:g}'


def output_channels(config: dict[str, Any]) -> int:
    """Channels of the last stage of a backbone that :func:`recognise` found, which the linear head takes."""
    if config['type'] == 'OREPARepVGG':
        from mmpretrain.models.backbones import RepVGG

        arch = RepVGG.arch_settings[config['arch']] if isinstance(config['arch'], str) else config['arch']
        return int(512 * arch['width_factor'][3])
    return config['base_channels'] * 8 * (1 if config['depth'] in (18, 34) else 4)
