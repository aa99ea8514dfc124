#!/usr/bin/env python3
"""Convert a published OREPA, DBB or RepVGG checkpoint (ResNet, WideResNet, ResNeXt, RepVGG) into an MM checkpoint, and back.

    python tools/convert_checkpoint.py resnet50.pth.tar orepa-resnet50_in1k.pth
    python tools/convert_checkpoint.py orepa-resnet50_in1k.pth resnet50.pth.tar --reverse

Every key and every shape is compared with the network the result is for, in both directions, before anything is written. Use the
result as ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.')``. A source in deployed form becomes the plain network:
a ResNet of method 'none' whose norms pass their input on with the bias added, or a RepVGG with deploy=True.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch
from common import UsageError, run
from files import replacing
from torch import Tensor

from orepa_mm.engine.architecture import ArchitectureError, name_of, output_channels, recognise
from orepa_mm.engine.checkpoint import read_checkpoint, state_dict_of
from orepa_mm.engine.published import deployed_names, export_network, import_network
from orepa_mm.engine.published_layers import UnknownKeyError

METHODS = ('OREPA', 'DBB', 'RepVGG', 'none')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='SRC', help='checkpoint to read')
    parser.add_argument('destination', type=Path, metavar='DST', help='checkpoint to write')
    parser.add_argument(
        '--arch', default='auto', help='such as resnet50, wideresnet18-x2, resnext50-32x4d, repvgg-a0; auto recognises it (default)'
    )
    parser.add_argument('--method', choices=METHODS, help='refuse another method than this')
    parser.add_argument('--scope', choices=('backbone', 'classifier'), default='classifier', help='without or with the linear head')
    parser.add_argument('--reverse', action='store_true', help='from an MM checkpoint back to the published layout')
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    return parser.parse_args()


def sha256_of_state(state: dict[str, Tensor]) -> str:
    """Hash of all keys and values, whatever file they are in."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].contiguous()
        digest.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_network(state: dict[str, Tensor], config: dict, source: Path) -> None:
    """Compare the state with the network ``config`` builds, both ways."""
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
        shown = '; '.join(wrong[:5]) + (f' and {len(wrong) - 5} more' if len(wrong) > 5 else '')
        raise UsageError(f'{source}: does not match {name_of(config)}: {shown}')


def import_published(checkpoint: dict, args: argparse.Namespace) -> dict:
    state = state_dict_of(checkpoint)
    if any(key.startswith('backbone.') for key in state):
        raise UsageError(f'{args.source}: is an MM checkpoint already; --reverse converts it back.')
    try:
        converted = import_network(state)
        config = recognise(converted)
    except (UnknownKeyError, ArchitectureError) as error:
        raise UsageError(f'{args.source}: not a published ResNet, ResNeXt or RepVGG ({error}).') from None
    if args.arch not in ('auto', name_of(config)):
        raise UsageError(f'--arch {args.arch}: {args.source} is a {name_of(config)}.')
    if args.method not in (None, config['method']):
        trained = 'is a plain network' if config['method'] == 'none' else f'was trained with {config["method"]}'
        raise UsageError(f'--method {args.method}: {args.source} {trained}.')
    check_network(converted, config, args.source)
    warn_not_finite(converted)
    if args.scope == 'backbone':
        converted = {key: value for key, value in converted.items() if key.startswith('backbone.')}
    wrapper = {key: value for key, value in checkpoint.items() if isinstance(value, int | float | str)}
    meta = dict(
        arch=name_of(config),
        method=config['method'],
        backbone=config,
        source=args.source.name,
        source_sha256=hashlib.sha256(args.source.read_bytes()).hexdigest(),
        state_sha256=sha256_of_state(converted),
        published=dict(
            wrapper,
            module_prefix=all(key.startswith('module.') for key in checkpoint.get('state_dict', checkpoint)),
            deployed=deployed_names(state),
        ),
    )
    return dict(meta=meta, state_dict=converted)


def export_published(checkpoint: dict, args: argparse.Namespace) -> dict:
    state = state_dict_of(checkpoint)
    wrapper = dict(checkpoint.get('meta', {}).get('published', {}))
    try:
        config = recognise(state)
        check_network(state, config, args.source)
        exported = export_network(state, wrapper.pop('deployed', None))
    except (UnknownKeyError, ArchitectureError) as error:
        raise UsageError(f'{args.source}: not an MM classifier with a ResNet, ResNeXt or RepVGG of this project ({error}).') from None
    if args.arch not in ('auto', name_of(config)):
        raise UsageError(f'--arch {args.arch}: {args.source} is a {name_of(config)}.')
    prefix = 'module.' if wrapper.pop('module_prefix', True) else ''
    return dict(wrapper, state_dict={prefix + key: value for key, value in exported.items()})


def warn_not_finite(state: dict[str, Tensor]) -> None:
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        print(f'warning: {len(broken)} tensors are not finite: {", ".join(broken[:5])}', file=sys.stderr)


def main() -> None:
    args = parse_args()
    if args.destination.exists() and not args.force:
        raise UsageError(f'{args.destination}: exists; --force overwrites it.')
    checkpoint = read_checkpoint(args.source)
    result = (export_published if args.reverse else import_published)(checkpoint, args)
    args.destination.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.destination) as partial:
        torch.save(result, partial)
    print(f'wrote {args.destination}: {len(result["state_dict"])} tensors')
    for key, value in result.get('meta', {}).items():
        if key not in ('backbone', 'published'):
            print(f'  {key}: {value}')


if __name__ == '__main__':
    run(main)
