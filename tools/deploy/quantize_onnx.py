#!/usr/bin/env python3
"""Quantize an exported classifier or segmentor to int8 for onnxruntime, calibrated with real pictures, and say what that changes.

    python tools/deploy/quantize_onnx.py classifier.onnx data/imagenet-mini/train classifier_int8.onnx \\
        --config configs/imagenet/orepa-resnet18-w16_imagenet-mini.py

Prints file size, latency and how far the outputs move, on pictures of the folder that were not calibrated with, and with --config the
metric on the config's test set, all of the float and of the int8 network.
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import Config

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
from common import UsageError, add_cfg_options, load_config, run  # noqa: E402
from preflight import check_data  # noqa: E402
from progress import track  # noqa: E402

from orepa_mm.deploy.evaluation import evaluate  # noqa: E402
from orepa_mm.deploy.formats import require_packages  # noqa: E402
from orepa_mm.deploy.pictures import pictures_in, read_pixels  # noqa: E402
from orepa_mm.deploy.quantize import (  # noqa: E402
    PACKAGES,
    Array,
    OnnxNetwork,
    change,
    check_correlations,
    latencies,
    neighbour_correlation,
    quantize,
)
from orepa_mm.files import check_writable, replacing  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, metavar='MODEL', help='float network, as tools/deploy/export_onnx.py writes it')
    parser.add_argument('pictures', type=Path, metavar='FOLDER', help='real pictures to calibrate with, of the training set')
    parser.add_argument('out', type=Path, metavar='OUT', help='ONNX file to write')
    parser.add_argument('--per-tensor', action='store_true', help='one scale for a kernel (default: one for each of its output channels)')
    parser.add_argument(
        '--full-range', action='store_true', help='weights of 8 bits, for processors with VNNI; others would saturate (default: 7 bits)'
    )
    parser.add_argument('--count', type=int, default=100, help='pictures to calibrate with, as many more to compare on (default: 100)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='of the pictures (default: as the file says)')
    parser.add_argument('--config', help='config whose test set both networks are evaluated on')
    add_cfg_options(parser)
    parser.add_argument('--threads', type=int, default=1, help='threads of the latencies (default: 1)')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    return parser.parse_args()


def prepared(network: OnnxNetwork, path: Path, size: tuple[int, int] | None = None) -> Array:
    """A picture file as the network takes it, by the steps in its metadata or resized to ``size``."""
    from run_onnx import as_input, open_picture, prepare

    steps = network.facts.get('prepare') or []
    if size or not steps:
        height, width = size or network.shape[2:]
        if not isinstance(height, int) or not isinstance(width, int):
            raise UsageError('the network does not say how large its pictures are: give --size HEIGHT WIDTH.')
        steps = [dict(step='resize', scale=[width, height], keep_ratio=False, interpolation='bilinear', antialias=False)]
    return as_input(prepare(open_picture(path, network.shape[1]), steps)[0])


def pictures_of(args: argparse.Namespace, network: OnnxNetwork) -> tuple[list[Array], list[Array], str]:
    """Pictures to calibrate with, pictures to compare on, and which the latter are: others where the folder has enough, else all of it."""
    ready, correlations = [], []
    for path in track(pictures_in(args.pictures, 2 * args.count), 'reading'):  # one by one: photographs take a lot of memory
        correlations.append(neighbour_correlation(read_pixels(path, network.shape[1])))
        ready.append(prepared(network, path, args.size))
    check_correlations(correlations, args.pictures)
    if len(ready) == 2 * args.count:
        return ready[::2], ready[1::2], f'{args.count} pictures that were not calibrated with'
    return ready[: args.count], ready, f'the {len(ready)} pictures of the folder'


def report(args: argparse.Namespace, networks: list[OnnxNetwork], pictures: list[Array], which: str, cfg: Config | None) -> None:
    rows = [('', 'float', 'int8')]
    rows.append(('file, MB', *(f'{path.stat().st_size / 1e6:.2f}' for path in (args.model, args.out))))
    side = ' x '.join(map(str, pictures[0].shape[2:]))
    rows.append((f'ms a picture of {side}, {args.threads} thread(s)', *(f'{ms:.2f}' for ms in latencies(networks, pictures[0]))))
    moved = change(*networks, pictures)
    rows.append((f'change of the {networks[0].output}, typical', '', f'{moved.typical:.4f}'))
    rows.append((f'change of the {networks[0].output}, largest', '', f'{moved.largest:.4f}'))
    rows.append(('same answers', '', f'{moved.same:.2%}'))
    if cfg is not None:
        expected, actual = (evaluate(cfg, network, lambda batches: track(batches, 'evaluating')) for network in networks)
        rows += [(name, f'{value:.2f}', f'{actual[name]:.2f}') for name, value in expected.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        print('  '.join((first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)))))
    print(f"(changes: of the outputs' spread and of their largest magnitude, on {which}; latency: medians of calls in turn)")


def main() -> None:
    args = parse_args()
    require_packages(PACKAGES)
    if args.out.exists() and args.model.exists() and args.out.samefile(args.model):
        raise UsageError(f'{args.out}: is the float network itself; choose another name.')
    check_writable(args.out, force=args.force)
    if args.count < 1 or args.threads < 1:
        raise UsageError('--count and --threads are at least 1.')
    if args.size and min(args.size) < 1:
        raise UsageError(f'--size {args.size[0]} {args.size[1]}: sides are at least 1 pixel.')
    network, cfg = OnnxNetwork(args.model, args.threads), None
    if args.config:
        cfg = load_config(args)
        check_data(cfg, ('test',), others={str(args.model): network.facts.get('classes') or ()})
    calibration, others, which = pictures_of(args, network)
    content = quantize(args.model, track(calibration, 'calibrating'), not args.per_tensor, args.full_range)
    quantized = OnnxNetwork(content, args.threads)
    with replacing(args.out) as partial:
        partial.write_bytes(content)
    print(f'wrote {args.out}, calibrated with {len(calibration)} pictures, a scale for each {"kernel" if args.per_tensor else "channel"}')
    report(args, [network, quantized], others, which, cfg)


if __name__ == '__main__':
    run(main)
