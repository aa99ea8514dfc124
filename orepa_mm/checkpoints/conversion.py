"""Published OREPA, DBB and RepVGG checkpoints as MM checkpoints, and back. Every key and shape is compared with the network."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, LayoutError, some
from .architecture import name_of, output_channels, recognise
from .published import deployed_names, export_network, import_network
from .reading import state_dict_of


def sha256_of_state(state: dict[str, Tensor]) -> str:
    """Hash of all keys and values, whatever file they are in."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].contiguous()
        digest.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_network(state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Compare a classifier's state dict with the network that ``config`` builds, both ways.

    Raises:
        LayoutError: When keys are missing, unexpected or of another shape.
    """
    from mmpretrain.registry import MODELS

    expected = {f'backbone.{key}': tuple(value.shape) for key, value in MODELS.build(dict(config)).state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if any(key.startswith('head.') for key in state):
        classes = found.get('head.fc.bias', (0,))[0]
        expected |= {'head.fc.weight': (classes, output_channels(config)), 'head.fc.bias': (classes,)}
    wrong = [f'missing {key}' for key in expected if key not in found]
    wrong += [f'unexpected {key}' for key in found if key not in expected]
    wrong += [f'{key} is {found[key]}, not {shape}' for key, shape in expected.items() if key in found and found[key] != shape]
    if wrong:
        raise LayoutError(f'it does not match {name_of(config)}: {some(wrong, 5, "; ")}')


def _recognise(state: dict[str, Tensor], source: Path, arch: str) -> dict[str, Any]:
    config = recognise(state)
    if arch not in ('auto', name_of(config)):
        raise CheckpointError(f'--arch {arch}: {source} is a {name_of(config)}.')
    return config


def import_checkpoint(
    checkpoint: dict[str, Any], source: Path, arch: str = 'auto', method: str | None = None, backbone_only: bool = False
) -> dict[str, dict[str, Any]]:
    """The MM checkpoint of a published one.

    Args:
        checkpoint: As :func:`.read_checkpoint` gives it.
        source: The file it is from, for the provenance in ``meta``.
        arch: Refuse another architecture than this, such as ``resnet50``; ``auto`` takes what is recognised.
        method: Refuse another method than this.
        backbone_only: Leave the linear head out.

    Returns:
        ``meta`` (architecture, method, backbone config, hashes, what :func:`export_checkpoint` needs) and ``state_dict``.

    Raises:
        CheckpointError: For a checkpoint of another kind, architecture or method.
    """
    state = state_dict_of(checkpoint)
    if any(key.startswith('backbone.') for key in state):
        raise CheckpointError(f'{source}: is an MM checkpoint already; --reverse converts it back.')
    try:
        converted = import_network(state)
        config = _recognise(converted, source, arch)
        if method not in (None, config['method']):
            trained = 'is a plain network' if config['method'] == 'none' else f'was trained with {config["method"]}'
            raise CheckpointError(f'--method {method}: {source} {trained}.')
        check_network(converted, config)
    except LayoutError as error:
        raise CheckpointError(f'{source}: not a published ResNet, ResNeXt or RepVGG ({error}).') from None
    if backbone_only:
        converted = {key: value for key, value in converted.items() if key.startswith('backbone.')}
    published: dict[str, Any] = {key: value for key, value in checkpoint.items() if isinstance(value, int | float | str)}
    published['module_prefix'] = all(key.startswith('module.') for key in checkpoint.get('state_dict', checkpoint))
    published['deployed'] = deployed_names(state)
    meta = dict(
        arch=name_of(config),
        method=config['method'],
        backbone=config,
        source=source.name,
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        state_sha256=sha256_of_state(converted),
        published=published,
    )
    return dict(meta=meta, state_dict=converted)


def export_checkpoint(checkpoint: dict[str, Any], source: Path, arch: str = 'auto') -> dict[str, Any]:
    """The inverse of :func:`import_checkpoint`.

    Raises:
        CheckpointError: For a checkpoint that is no MM classifier with one of these networks.
    """
    state = state_dict_of(checkpoint)
    published = dict(checkpoint.get('meta', {}).get('published', {}))
    try:
        config = _recognise(state, source, arch)
        check_network(state, config)
        exported = export_network(state, published.pop('deployed', None))
    except LayoutError as error:
        raise CheckpointError(f'{source}: not an MM classifier with a ResNet, ResNeXt or RepVGG of this project ({error}).') from None
    prefix = 'module.' if published.pop('module_prefix', True) else ''
    return dict(published, state_dict={prefix + key: value for key, value in exported.items()})


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Keys whose values are not all finite."""
    return [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
