#!/usr/bin/env python3
"""Count the parameters of the published architectures with 1000 classes, in training form and re-parameterized.

python .dev_scripts/count_parameters.py                                  # a table in the terminal
python .dev_scripts/count_parameters.py --write docs/architectures.md    # those whose weights the authors published
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
import doc_tables  # noqa: E402
from common import run  # noqa: E402
from progress import track  # noqa: E402

import orepa_mm  # noqa: E402
from orepa_mm.layers import METHODS  # noqa: E402

NUM_CLASSES = 1000
RESNETS = {
    **{f'ResNet-{depth}': dict(depth=depth) for depth in (18, 34, 50, 101, 152)},
    'WideResNet-18 x1.5': dict(depth=18, stem_channels=96, base_channels=96),
    'WideResNet-18 x2': dict(depth=18, stem_channels=128, base_channels=128),
    **{f'ResNeXt-{depth} 32x4d': dict(type='OREPAResNeXt', depth=depth) for depth in (50, 101)},
}
REPVGGS = ('A0', 'A1', 'A2', 'B0', 'B1', 'B1g2', 'B1g4', 'B2', 'B2g2', 'B2g4', 'B3', 'B3g2', 'B3g4', 'D2se')
ALL = (*RESNETS, *(f'RepVGG-{arch}' for arch in REPVGGS))
COLUMNS = ('none', 'RepVGG', *METHODS)
# Networks whose weights the authors published.
PUBLISHED = (
    *('ResNet-18', 'ResNet-34', 'ResNet-50', 'ResNet-101', 'WideResNet-18 x2', 'ResNeXt-50 32x4d'),
    *('RepVGG-A0', 'RepVGG-A1', 'RepVGG-A2'),
)


def backbones() -> dict[tuple[str, str], dict]:
    """Architecture and method -> config of the backbone."""
    configs = {}
    for name, options in RESNETS.items():
        for method in ('none', *METHODS):
            configs[name, method] = dict(dict(type='OREPAResNet'), **options, method=method)
    for arch in REPVGGS:
        for method in ('RepVGG', 'OREPA'):
            configs[f'RepVGG-{arch}', method] = dict(type='OREPARepVGG', arch=arch, method=method)
    return configs


def count(config: dict) -> tuple[int, int]:
    """Parameters of a backbone with a linear head, in training form and re-parameterized."""
    from mmdet.registry import MODELS

    with torch.device('meta'):  # shapes alone: no weights are drawn
        backbone = MODELS.build(dict(config))
        channels = backbone(torch.empty(1, 3, 64, 64))[-1].shape[1]
        model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(channels, NUM_CLASSES)))
        model.train(False)
        training = sum(p.numel() for p in model.parameters())
        orepa_mm.reparameterize(model)
    return training, sum(p.numel() for p in model.parameters())


def rows(names: Sequence[str] = ALL) -> list[list[str]]:
    """Of each architecture: millions of parameters by method, in training form, and of the network that is deployed."""
    configs, table = backbones(), []
    for name in track(names, 'counting'):
        counts = {method: count(config) for (other, method), config in configs.items() if other == name}
        table.append([name, *(f'{counts[m][0] / 1e6:.2f}' if m in counts else '' for m in COLUMNS), f'{counts["OREPA"][1] / 1e6:.2f}'])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    doc_tables.add_option(parser)
    args = parser.parse_args()
    if args.write:
        doc_tables.check(args.write, 'parameters')
    table = [['', *COLUMNS, 're-parameterized'], *rows(PUBLISHED if args.write else ALL)]
    for row in table:
        print(f'{row[0]:<20}' + ''.join(f'{cell:>18}' for cell in row[1:]))
    if args.write:
        doc_tables.write(args.write, 'parameters', doc_tables.markdown(table))


if __name__ == '__main__':
    run(main)
