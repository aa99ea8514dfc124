#!/usr/bin/env python3
"""Write a trained model as the stock model it has become: OUT_DIR/config.py and OUT_DIR/model.pth, which need nothing of orepa_mm.

    python tools/model_converters/reparameterize_model.py configs/coco/mask-rcnn_orepa-r50_fpn_1x_coco.py epoch_12.pth deployed/

Test, fine-tune and serve the result with the stock mmdet, mmseg or mmpretrain. Before anything is written the parts of both models are
compared, on pictures of the test set, or random ones where its files are not there; above the tolerance nothing is written.

--format torchvision or timm writes OUT_DIR/model.pth, the state dict of one of their ResNet classifiers, and OUT_DIR/model.json, which says
of which.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from common import add_common_options, load_config, run  # noqa: E402

from orepa_mm.deploy.batches import input_channels, random_batch, real_batches  # noqa: E402
from orepa_mm.deploy.classifiers import LIBRARIES, to_library  # noqa: E402
from orepa_mm.deploy.loading import load_model  # noqa: E402
from orepa_mm.deploy.stock_files import write_classifier, write_stock_model  # noqa: E402
from orepa_mm.deploy.stock_model import to_stock_model  # noqa: E402
from orepa_mm.files import check_writable  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config the model was trained with')
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='training-form checkpoint')
    parser.add_argument('out_dir', type=Path, metavar='OUT_DIR', help='folder to write')
    parser.add_argument('--format', choices=('mm', *LIBRARIES), default='mm', help='whose model to write (default: that of the config)')
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='the averaged weights of a run with EMAHook, or those it averaged (default: what the checkpoint has as its state dict, '
        'which with EMAHook are the averaged ones)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite the files in OUT_DIR')
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_writable(args.out_dir, folder=True, force=args.force)
    cfg = load_config(args)
    model = load_model(cfg, args.checkpoint, args.ema, expand=False)
    real = real_batches(cfg)
    print(
        'comparing both forms on', f'{len(real)} pictures of the test set' if real else 'random pictures (no files of a test set are there)'
    )
    stock = to_stock_model(cfg, model, real or [random_batch(cfg, input_channels(model))])
    for dtype, difference in stock.differences.items():
        print(f"  {str(dtype).removeprefix('torch.')}: largest difference {difference:.1e} of the outputs' scale")
    if stock.unreached:
        print(f'  not called: {len(stock.unreached)} layers ({", ".join(stock.unreached[:3])} ...); their weights are loaded as they are')
    if args.format == 'mm':
        write_stock_model(args.out_dir, stock, args.checkpoint)
        print(f'wrote {args.out_dir / "config.py"} and {args.out_dir / "model.pth"}')
    else:
        name, network = to_library(stock.model, args.format, real or [random_batch(cfg, input_channels(model))])
        write_classifier(args.out_dir, stock, args.checkpoint, args.format, name, network)
        print(f'wrote {args.out_dir / "model.pth"}: the state dict of {args.format} {name}')
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, stock.model))
    print(f'  {before / 1e6:.2f} M parameters before, {after / 1e6:.2f} M after')


if __name__ == '__main__':
    run(main)
