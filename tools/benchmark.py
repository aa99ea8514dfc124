#!/usr/bin/env python3
"""Time training steps and forward passes of a ResNet with and without OREPA, side by side in one process.

The networks take turns, so a machine that slows down slows both; what counts is the ratio to the plain network::

    python tools/benchmark.py --depth 50 --batch 16 --size 224
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import nn

import orepa_mm

METHODS = {'none': dict(type='Conv2d'), 'OREPA': None}


class Classifier(nn.Module):
    """A ResNet with a linear head, as for ImageNet."""

    def __init__(self, depth: int, conv_cfg: dict | None) -> None:
        super().__init__()
        from mmpretrain.registry import MODELS

        self.backbone = MODELS.build(dict(type='OREPAResNet', depth=depth, conv_cfg=conv_cfg))
        self.head = nn.Linear(self.backbone.feat_dim, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def take_turns(runs: dict[str, Callable[[], None]], repeats: int, device: torch.device, title: str) -> dict[str, list[float]]:
    """Seconds of every run, ``repeats`` times in turn after two rounds of warm-up."""
    times = {name: [] for name in runs}
    for i in range(repeats + 2):
        for name, run in runs.items():
            elapsed = seconds(run, device)
            if i >= 2:
                times[name].append(elapsed)
        print(f'\r{title}: round {i + 1} of {repeats + 2}', end='', flush=True)
    print()
    return times


def training_step(model: nn.Module, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, foreach=True)

    def run() -> None:
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def forward(model: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
            model(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--depth', type=int, default=18, choices=(18, 34, 50, 101, 152), help='depth of the ResNet')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224, help='height and width of the pictures')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), help='autocast dtype')
    parser.add_argument('--out', type=Path, default=Path('benchmarks'), help='folder for the JSON file')
    args = parser.parse_args()
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        parser.error(f'--device {args.device}: no GPU found')
    for option, least in (('batch', 2), ('size', 32), ('repeats', 1)):  # batch norms need more than one value to train on
        if getattr(args, option) < least:
            parser.error(f'--{option} must be at least {least}')

    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    x = torch.randn(args.batch, 3, args.size, args.size, device=device)
    target = torch.randint(1000, (args.batch,), device=device)
    models = {name: Classifier(args.depth, conv_cfg).to(device).train() for name, conv_cfg in METHODS.items()}
    steps = {name: training_step(model, x, target, dtype) for name, model in models.items()}
    rows = {'training step': take_turns(steps, args.repeats, device, 'training step')}
    for model in models.values():
        model.train(False)
    passes = {name: forward(model, x, dtype) for name, model in models.items()}
    deployed = Classifier(args.depth, None).to(device)
    deployed.load_state_dict(models['OREPA'].state_dict())
    deployed.train(False)
    passes['re-parameterized'] = forward(orepa_mm.reparameterize(deployed), x, dtype)
    rows['eval forward'] = take_turns(passes, args.repeats, device, 'eval forward')

    machine = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{platform.machine()}, {os.cpu_count()} cores'
    print(f'\nResNet-{args.depth}, batch {args.batch} at {args.size}, {args.dtype}, {machine}, torch {torch.__version__}, {date.today()}')
    print(f'{"":<16}{"":<18}{"median ms":>10}{"min":>9}{"max":>9}{"ratio":>8}')
    results = []
    for row, times in rows.items():
        for name, values in times.items():
            # Round by round, so that both sides of a ratio saw the same machine.
            ratio = statistics.median(value / plain for value, plain in zip(values, times['none'], strict=True))
            results.append(dict(what=row, method=name, seconds=values, ratio=ratio))
            low, middle, high = (1000 * f(values) for f in (min, statistics.median, max))
            print(f'{row:<16}{name:<18}{middle:>10.1f}{low:>9.1f}{high:>9.1f}{ratio:>8.2f}')
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f'resnet{args.depth}_b{args.batch}_s{args.size}_{args.dtype}_{device.type}.json'
    settings = {key: value for key, value in vars(args).items() if key != 'out'}
    record = dict(settings, machine=machine, torch=torch.__version__, date=str(date.today()), results=results)
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=2) + '\n')
    partial.replace(path)
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
