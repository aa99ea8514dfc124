#!/usr/bin/env python3
"""Draw what squeezing is: the branches of one layer of a trained network, the kernel they add up to, and what feature maps go through.

    python .dev_scripts/draw_concept.py configs/imagenet/orepa-resnet18-w16_imagenet-mini.py \\
        work_dirs/orepa-resnet18-w16_imagenet-mini/last.pth docs/images/squeezing.png

The kernels are those of the checkpoint, for one pair of channels; it was trained with ``model.backbone.init=published``.
"""

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
from common import add_cfg_options, load_config, run  # noqa: E402

from orepa_mm.deploy.loading import load_model  # noqa: E402
from orepa_mm.files import replacing  # noqa: E402
from orepa_mm.layers.kernels import OREPAKernel  # noqa: E402

WORDS = dict(
    origin='k x k',
    avg='1x1, average',
    freq='1x1, frequency',
    sequence='1x1, then k x k',
    point='1x1',
    separable='depthwise,\nthen 1x1',
)
INK, WEIGHTS, MAPS = '#333333', '#fff3e0', '#e8f0fe'


def one_pair(kernel: OREPAKernel) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Each branch's k x k part and their sum, for the pair of channels in which the smallest branch is largest beside the others."""
    out_channels, inputs, size, _ = kernel.shape
    parts = {name: part.detach().reshape(out_channels, size, size, inputs) for name, part in kernel.parts().items()}
    peaks = torch.stack([part.abs().amax((1, 2)) for part in parts.values()])
    o, i = divmod((peaks.amin(0) / peaks.amax(0)).argmax().item(), inputs)
    return {name: part[o, :, :, i] for name, part in parts.items()}, sum(parts.values())[o, :, :, i]


def draw(parts: dict[str, torch.Tensor], total: torch.Tensor, path: Path) -> None:
    figure = Figure((13, 5.2))
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 13), ylim=(0, 5.2))
    canvas.axis('off')

    def box(x: float, y: float, width: float, height: float, colour: str, text: str = '', **style) -> None:
        canvas.add_patch(FancyBboxPatch((x, y), width, height, boxstyle='round,pad=0.06', fc=colour, ec='#bbbbbb'))
        canvas.text(x + width / 2, y + height / 2, text, ha='center', va='center', color=INK, **style)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        canvas.annotate('', end, start, arrowprops=dict(arrowstyle='-|>', color=INK, lw=1.6))

    limit = max(part.abs().max().item() for part in (*parts.values(), total))

    def heat(x: float, y: float, width: float, kernel: torch.Tensor, title: str) -> None:
        axes = figure.add_axes((x / 13, y / 5.2, width / 13, width / 5.2))
        axes.imshow(kernel, cmap='RdBu_r', vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[])
        canvas.text(x + width / 2, y + width + 0.1, title, ha='center', va='bottom', fontsize=10, color=INK)

    box(0.15, 2.35, 9.55, 2.6, WEIGHTS)
    canvas.text(0.25, 4.9, 'training: weights, once a step', va='top', fontsize=12, weight='bold', color=INK)
    for index, (name, part) in enumerate(parts.items()):
        x = 0.35 + 1.3 * index
        heat(x, 2.9, 0.9, part, f'{name}')
        canvas.text(x + 0.45, 2.8, WORDS[name], ha='center', va='top', fontsize=8.5, color=INK)
        canvas.text(x + 1.1, 3.35, '+' if index + 1 < len(parts) else '=', ha='center', va='center', fontsize=18, color=INK)
    heat(8.35, 2.9, 0.9, total, 'one kernel')

    box(0.15, 0.2, 9.55, 1.8, MAPS)
    canvas.text(0.25, 1.95, 'training: feature maps', va='top', fontsize=12, weight='bold', color=INK)
    box(0.5, 0.55, 1.5, 0.7, 'white', 'input', fontsize=11)
    box(7.9, 0.55, 1.5, 0.7, 'white', 'output', fontsize=11)
    box(3.4, 0.55, 1.7, 0.7, 'white', 'one convolution', fontsize=11)
    box(5.9, 0.55, 1.2, 0.7, 'white', 'norm', fontsize=11)
    for start, end in ((2.08, 3.32), (5.18, 5.82), (7.18, 7.82)):
        arrow((start, 0.9), (end, 0.9))
    canvas.plot([8.8, 8.8, 4.25], [2.85, 2.17, 2.17], color=INK, lw=1.6)
    arrow((4.25, 2.17), (4.25, 1.33))

    box(10.05, 0.2, 2.8, 4.75, '#e6f4ea')
    canvas.text(10.15, 4.9, 'deployed: the stock layer', va='top', fontsize=12, weight='bold', color=INK)
    heat(11.0, 2.9, 0.9, total, 'kernel, stored')
    box(10.75, 1.45, 1.4, 0.6, 'white', 'Conv2d', fontsize=11)
    box(10.75, 0.45, 1.4, 0.6, 'white', 'norm', fontsize=11)
    arrow((11.45, 2.85), (11.45, 2.13))
    arrow((11.45, 1.37), (11.45, 1.13))
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format='png')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', type=Path, help='training-form checkpoint of this config')
    parser.add_argument('out', type=Path, metavar='OUT', help='the picture to write')
    add_cfg_options(parser)
    args = parser.parse_args()
    model = load_model(load_config(args), args.checkpoint)
    draw(*one_pair(model.get_submodule('backbone.layer1.0.conv1.kernel')), args.out)


if __name__ == '__main__':
    run(main)
