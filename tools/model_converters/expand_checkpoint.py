#!/usr/bin/env python3
"""Write a stock checkpoint with training-time branches in place of its plain convolutions; the outputs stay the same to rounding.

    python tools/model_converters/expand_checkpoint.py configs/coco/mask-rcnn_orepa-r50_fpn_1x_coco.py mask_rcnn_r50.pth expanded.pth
    python tools/model_converters/expand_checkpoint.py none resnet50.pth expanded.pth

CONFIG builds the model that the result is for; none recognises a ResNet or ResNeXt classifier in torchvision's or mmpretrain's names.
Not needed to train: init_cfg and load_from expand plain kernels as they are loaded.
"""

import argparse
import sys
from pathlib import Path

from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from common import UsageError, add_common_options, load_config, run  # noqa: E402

from orepa_mm.checkpoints.architecture import name_of, output_channels, recognise  # noqa: E402
from orepa_mm.checkpoints.checking import check_state_dict  # noqa: E402
from orepa_mm.checkpoints.plain_kernels import plain_kernels  # noqa: E402
from orepa_mm.checkpoints.reading import read_checkpoint, state_dict_of  # noqa: E402
from orepa_mm.deploy.loading import build_model  # noqa: E402
from orepa_mm.errors import LayoutError  # noqa: E402
from orepa_mm.files import check_writable, save  # noqa: E402
from orepa_mm.layers import SqueezedConv2d  # noqa: E402
from orepa_mm.layers.kernels import STARTS  # noqa: E402


def classifier_of_state(state: dict, source: Path) -> tuple[nn.Module, dict]:
    """An OREPA classifier for a plain one's state dict, and that state dict in mmpretrain's names."""
    from mmpretrain.registry import MODELS

    if not any(key.startswith('backbone.') for key in state):
        state = {key.replace('fc.', 'head.fc.') if key.startswith('fc.') else f'backbone.{key}': value for key, value in state.items()}
    try:
        config = recognise(state) | dict(method='OREPA')
    except LayoutError as error:
        raise UsageError(f'{source}: {error}; give the config of the model it is for instead of none.') from None
    head = dict(type='LinearClsHead', num_classes=len(state.get('head.fc.bias', [0])), in_channels=output_channels(config))
    print(f'recognised {name_of(config)}')
    return MODELS.build(dict(type='ImageClassifier', backbone=config, neck=dict(type='GlobalAveragePooling'), head=head)), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config of the model with branches, or none')
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='plain checkpoint')
    parser.add_argument('out', type=Path, metavar='OUT', help='checkpoint to write')
    parser.add_argument('--start', choices=STARTS, help="how branches start, as for orepa_mm.expand (default: the config's, or balanced)")
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    add_common_options(parser)
    args = parser.parse_args()
    check_writable(args.out, force=args.force)
    checkpoint = read_checkpoint(args.checkpoint)
    state = state_dict_of(checkpoint)
    if args.config == 'none':
        model, state = classifier_of_state(state, args.checkpoint)
    else:
        model = build_model(load_config(args))
    for layer in model.modules():
        if args.start and isinstance(layer, SqueezedConv2d):
            layer.start = args.start
    plain = plain_kernels(model, state)
    if not plain:
        raise UsageError(f'{args.checkpoint}: has nothing to expand: no plain kernel where {args.config} builds layers with branches.')
    check_state_dict(model, state, args.checkpoint)
    model.load_state_dict(state, strict=False)  # what is left over, such as num_batches_tracked, is as the loaders of MM leave it
    meta = dict(checkpoint.get('meta') or {}, expanded_from=args.checkpoint.name)
    save(dict(meta=meta, state_dict=model.state_dict()), args.out)
    print(f'wrote {args.out}: {len(plain)} convolutions expanded into branches')


if __name__ == '__main__':
    run(main)
