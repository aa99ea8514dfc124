#!/usr/bin/env python3
"""Convert a published OREPA, DBB or RepVGG checkpoint (ResNet, WideResNet, ResNeXt, RepVGG) into an MM checkpoint, and back.

    python tools/model_converters/convert_checkpoint.py resnet50.pth.tar orepa-resnet50_in1k.pth
    python tools/model_converters/convert_checkpoint.py orepa-resnet50_in1k.pth resnet50.pth.tar --reverse

Every key and every shape is compared with the network the result is for, in both directions, before anything is written. Use the
result as ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.')``. A source in deployed form becomes the plain network:
a ResNet of method 'none' whose norms pass their input on with the bias added, or a RepVGG with deploy=True.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from common import run  # noqa: E402

from orepa_mm.checkpoints.conversion import export_checkpoint, import_checkpoint, not_finite  # noqa: E402
from orepa_mm.checkpoints.reading import read_checkpoint  # noqa: E402
from orepa_mm.files import check_writable, save  # noqa: E402

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


def main() -> None:
    args = parse_args()
    check_writable(args.destination, force=args.force)
    checkpoint = read_checkpoint(args.source)
    if args.reverse:
        result = export_checkpoint(checkpoint, args.source, args.arch)
    else:
        result = import_checkpoint(checkpoint, args.source, args.arch, args.method, args.scope == 'backbone')
        broken = not_finite(result['state_dict'])
        if broken:
            print(f'warning: {len(broken)} tensors are not finite: {", ".join(broken[:5])}', file=sys.stderr)
    save(result, args.destination)
    print(f'wrote {args.destination}: {len(result["state_dict"])} tensors')
    for key, value in result.get('meta', {}).items():
        if key not in ('backbone', 'published'):
            print(f'  {key}: {value}')


if __name__ == '__main__':
    run(main)
