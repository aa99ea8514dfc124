#!/usr/bin/env python3
"""How large a ResNet-18's kernels are before training, for each way of starting.

The squared norm of an output channel, mean over all, and how much of it lies at the centre tap.

    python .dev_scripts/initial_norms.py                               # a table in the terminal
    python .dev_scripts/initial_norms.py --write docs/learning_rate.md
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
import doc_tables  # noqa: E402
import torch  # noqa: E402
from common import run  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402

import orepa_mm.backbones.mmpretrain_backbones  # noqa: E402

LAYERS = {'conv1': '7x7 stem', 'layer1.0.conv2': '3x3, 64 channels', 'layer4.1.conv2': '3x3, 512 channels', 'layer4.0.downsample.0': '1x1'}
STARTS = {
    'plain': dict(method='none'),
    'full, published': {},
    'light, published': dict(branches='light'),
    'full, balanced': dict(init='balanced'),
}


def kernels(options: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = MODELS.build(dict(type='OREPAResNet', depth=18, **options))
    model.init_weights()
    model.eval()
    orepa_mm.reparameterize(model)
    return {name: model.get_submodule(name).weight for name in LAYERS}


def cell(kernel: torch.Tensor) -> str:
    squares = kernel.detach().square().sum(1).mean(0)
    return f'{squares.sum():.2f} ({squares[squares.shape[0] // 2, squares.shape[1] // 2] / squares.sum():.0%})'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    doc_tables.add_option(parser)
    args = parser.parse_args()
    if args.write:
        doc_tables.check(args.write, 'norms')
    logging.disable(logging.INFO)  # mmengine names every parameter it draws
    found = {start: kernels(options) for start, options in STARTS.items()}
    rows = [[label, *(cell(each[name]) for each in found.values())] for name, label in LAYERS.items()]
    text = doc_tables.markdown([['', *found], *rows])
    print(text)
    if args.write:
        doc_tables.write(args.write, 'norms', text)


if __name__ == '__main__':
    run(main)
