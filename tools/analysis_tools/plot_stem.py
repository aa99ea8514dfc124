#!/usr/bin/env python3
"""Draw the kernel of a deep linear stem and what each branch of each of its stages adds to it.

    python tools/analysis_tools/plot_stem.py work_dirs/orepa-resnet18-w16_imagenet-mini/last.pth stem.png

Reads the checkpoint alone, in training form. The kernel is linear in each of its stages: the branches of a row add up to the kernel on the
left. Each field has a tile for every output channel, in the colours of the three input channels, grey for zero, each field to its own
scale; its title says how large it is: its norm relative to the kernel's.
"""

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
from common import UsageError, run  # noqa: E402
from diversity import stem_parts  # noqa: E402

from orepa_mm.checkpoints.reading import read_checkpoint, state_dict_of  # noqa: E402
from orepa_mm.checkpoints.stem import deep_stem  # noqa: E402
from orepa_mm.files import check_writable, replacing  # noqa: E402

MARK = '.kernel.stages.'
GAP = 1  # pixels between tiles


def read_stem(checkpoint: Path) -> tuple[str, Tensor, list[dict[str, Tensor]]]:
    """Path and kernel [O, I, k, k] of the deep linear stem in a checkpoint, and what its branches add by :func:`.stem_parts`.

    Raises:
        CheckpointError: When the file cannot be read.
        UsageError: When it holds no deep linear stem.
    """
    state = state_dict_of(read_checkpoint(checkpoint))
    path = next((key.split(MARK)[0] for key in state if MARK in key), '')
    layer = deep_stem(state, path)
    if layer is None:
        raise UsageError(
            f'{checkpoint}: holds no deep linear stem (keys with "{MARK}"): give a training-form checkpoint of an OREPA network that was '
            'not built with plain_stem=True.'
        )
    with torch.no_grad():
        return path, layer.weight.double(), stem_parts(layer.kernel)


def tiles(kernel: Tensor) -> Tensor:
    """A kernel [O, I, k, k] as one picture [H, W, 3] of values 0 to 1, an output channel beside the other, 0.5 for a weight of zero.

    Three input channels are its colours; of another number the mean is shown in grey.
    """
    if kernel.shape[1] != 3:
        kernel = kernel.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    count, _, size, _ = kernel.shape
    columns = next(width for width in range(1, count + 1) if width * width >= count)
    rows, step = -(-count // columns), size + GAP
    canvas = kernel.new_ones(rows * step + GAP, columns * step + GAP, 3)
    scaled = 0.5 + 0.5 * kernel / kernel.abs().max().clamp(min=torch.finfo(kernel.dtype).tiny)
    for index, tile in enumerate(scaled):
        top, left = (GAP + step * place for place in divmod(index, columns))
        canvas[top : top + size, left : left + size] = tile.permute(1, 2, 0)
    return canvas


def shares(kernel: Tensor, parts: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Norm of each part relative to the kernel's."""
    whole = kernel.norm().clamp(min=torch.finfo(kernel.dtype).tiny)
    return [{name: float(part.norm() / whole) for name, part in row.items()} for row in parts]


def draw(title: str, kernel: Tensor, parts: list[dict[str, Tensor]], path: Path) -> None:
    """The kernel on the left, a row for each stage on the right."""
    columns, side = max(map(len, parts)), 2.1
    figure = Figure((side * (columns + len(parts)), side * len(parts) * 1.12), layout='constrained')
    grid = figure.add_gridspec(len(parts), columns + len(parts))
    fields = [(grid[:, : len(parts)], title, kernel)]
    for stage, (row, found) in enumerate(zip(parts, shares(kernel, parts), strict=True)):
        for column, (name, part) in enumerate(row.items(), len(parts)):
            fields.append((grid[stage, column], f'stage {stage + 1}, {name}: {found[name]:.2g}', part))
    for place, text, field in fields:
        panel = figure.add_subplot(place)
        panel.imshow(tiles(field), interpolation='nearest')
        panel.set_title(text, fontsize=9)
        panel.axis('off')
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format='png')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='in training form')
    parser.add_argument('out', type=Path, metavar='OUT.png')
    args = parser.parse_args()
    check_writable(args.out)
    path, kernel, parts = read_stem(args.checkpoint)
    size = f'{kernel.shape[2]}x{kernel.shape[3]}'
    print(f'{path}: {size} kernel of {len(parts)} stages; norms of the branches relative to its own')
    for stage, row in enumerate(shares(kernel, parts), 1):
        print(f'  stage {stage}: ' + '  '.join(f'{name} {share:.3f}' for name, share in row.items()))
    draw(f'{path}: the {size} kernel', kernel, parts, args.out)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    run(main)
