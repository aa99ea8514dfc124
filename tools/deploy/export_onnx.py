#!/usr/bin/env python3
"""Write a trained model as an ONNX file that runs with onnxruntime alone, and compare it with the training form.

    python tools/deploy/export_onnx.py CONFIG CHECKPOINT model.onnx --dynamic
    python tools/deploy/run_onnx.py model.onnx pictures/*.jpg

The file takes plain RGB pictures: mean, deviation, padding, non-maximum suppression are part of the graph. Its metadata says how
pictures are resized, the classes and the rest. The result is run on real pictures beside the training form's own predictions, and kept
only when both agree.

With --format pt2 it becomes a package compiled for this processor, read by torch._inductor.aoti_load_package; this needs a C++ compiler.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from common import UsageError, add_cfg_options, load_config, run  # noqa: E402
from progress import track  # noqa: E402

from orepa_mm.deploy.export import SCALES, export, table  # noqa: E402
from orepa_mm.files import check_writable, replacing  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', type=Path, help='training-form checkpoint of this config')
    parser.add_argument('out', type=Path, metavar='OUT', help='the file to write')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help="pictures' size (default: of the config's test pipeline)")
    parser.add_argument('--dynamic', action='store_true', help='take pictures of any size; checked at four sizes around --size')
    parser.add_argument('--softmax', action='store_true', help='of a classifier: probabilities instead of logits')
    parser.add_argument('--labels', action='store_true', help="of a segmentor: the label map instead of the classes' logits")
    parser.add_argument('--format', choices=('onnx', 'pt2'), default='onnx', help='pt2: a package of AOTInductor')
    parser.add_argument('--opset', type=int, help="version of ONNX's operators, from 18 on (default: torch's)")
    parser.add_argument('--float-input', action='store_true', help='take pictures as float32 (0 to 255) in the place of uint8, for ncnn')
    parser.add_argument('--pictures', type=Path, metavar='FOLDER', help="pictures for the check (default: of the config's test dataset)")
    parser.add_argument('--ema', action=argparse.BooleanOptionalAction, help='averaged weights of an EMAHook, or those that were trained')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    add_cfg_options(parser)
    return parser.parse_args()


def check_compiler() -> None:
    compiler = os.environ.get('CXX', 'g++')
    if not any(map(shutil.which, (compiler, 'g++', 'clang++'))):
        raise UsageError('--format pt2 needs a C++ compiler and none was found: install one (Debian: apt-get install g++) or set CXX.')


def main() -> None:
    args = parse_args()
    check_writable(args.out, force=args.force)
    if args.format == 'pt2':
        check_compiler()
        if args.opset is not None or args.float_input:
            raise UsageError('--opset and --float-input are for ONNX; leave them out with --format pt2.')
    cfg = load_config(args)
    with replacing(args.out) as partial:
        checks = export(
            cfg,
            args.checkpoint,
            partial,
            file_format=args.format,
            size=args.size and tuple(args.size),
            dynamic=args.dynamic,
            softmax=args.softmax,
            labels=args.labels,
            opset=args.opset,
            float_input=args.float_input,
            pictures=args.pictures,
            ema=args.ema,
        )
        rows = list(track(checks, 'exporting, comparing', len(SCALES)))
    print(table(rows))
    print(f'wrote {args.out}: {args.out.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    run(main)
