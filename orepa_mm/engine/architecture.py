"""Telling a ResNet's architecture from the keys and shapes of a classifier's state dict."""

import re

from torch import Tensor

DEPTHS = {  # blocks of the four stages, whether bottlenecks
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


class ArchitectureError(ValueError):
    """Keys or shapes are of no ResNet known here."""


def _kernel_shape(state: dict[str, Tensor], conv: str) -> tuple[int, ...]:
    for name in ('weight', 'kernel.origin', 'origin.weight', 'kernel.stages.0.origin', 'kernel.stages.0.weight'):
        if f'{conv}.{name}' in state:
            return tuple(state[f'{conv}.{name}'].shape)
    raise ArchitectureError(f'no kernel found for {conv}: this is no ResNet classifier')


def recognise(state: dict[str, Tensor]) -> dict:
    """The mmpretrain config of the OREPA backbone that a classifier's state dict belongs to.

    Args:
        state: Keys as of an mmpretrain ``ImageClassifier``: ``backbone.layer1.0.conv1...``.

    Raises:
        ArchitectureError: When no known architecture has such keys or shapes.
    """
    blocks = [{m.group(1) for m in (re.match(rf'backbone\.layer{stage}\.(\d+)\.', key) for key in state) if m} for stage in (1, 2, 3, 4)]
    counts = tuple(map(len, blocks))
    bottleneck = any(key.startswith('backbone.layer1.0.conv3.') for key in state)
    if (counts, bottleneck) not in DEPTHS:
        raise ArchitectureError(f'{counts} {"bottleneck" if bottleneck else "basic"} blocks a stage is no ResNet known here')
    method = 'OREPA' if any('.kernel.' in key for key in state) else 'DBB' if any('origin_norm' in key for key in state) else 'none'
    last = _kernel_shape(state, f'backbone.layer1.0.conv{3 if bottleneck else 2}')
    base = last[0] // 4 if bottleneck else last[0]
    stem = _kernel_shape(state, 'backbone.conv1')[0]
    config = dict(type='OREPAResNet', depth=DEPTHS[counts, bottleneck], method=method, stem_channels=stem, base_channels=base)
    if bottleneck:
        width, per_group = _kernel_shape(state, 'backbone.layer1.0.conv2')[:2]
        if per_group != width:
            groups = width // per_group
            config.update(type='OREPAResNeXt', groups=groups, width_per_group=per_group)
    return config


def name_of(config: dict) -> str:
    """The usual name, such as ``resnet50``, ``wideresnet18-x1.5`` or ``resnext50-32x4d``; other widths get a suffix."""
    depth, width = config['depth'], config['base_channels'] / 64
    if config['type'] == 'OREPAResNeXt':
        name = f'resnext{depth}-{config["groups"]}x{config["width_per_group"]}d'
    elif width in (1.5, 2):
        return f'wideresnet{depth}-x{width:g}'
    else:
        name = f'resnet{depth}'
    return name if width == 1 else f'{name}-w{width:g}'
