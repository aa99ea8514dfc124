#!/usr/bin/env python3
"""How large a ResNet-18's kernels are before training, for each way of starting; writes the table of docs/learning_rate.md.

The squared norm of an output channel, mean over all, and how much of it lies at the centre tap.
"""

import logging
from pathlib import Path

import torch
from doc_tables import markdown, write
from mmpretrain.registry import MODELS

import orepa_mm.backbones.mmpretrain_backbones

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'learning_rate.md'
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


if __name__ == '__main__':
    logging.disable(logging.INFO)  # mmengine names every parameter it draws
    found = {start: kernels(options) for start, options in STARTS.items()}
    rows = [[label, *(cell(each[name]) for each in found.values())] for name, label in LAYERS.items()]
    write(PAGE, 'norms', markdown([['', *found], *rows]))
