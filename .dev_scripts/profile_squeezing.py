#!/usr/bin/env python3
"""What squeezing the kernels of a ResNet spends its time on, forward and backward, by operation.

    python .dev_scripts/profile_squeezing.py                        # ResNet-18 and ResNet-50, a table in the terminal
    python .dev_scripts/profile_squeezing.py --write docs/speed.md

By torch's profiler on a CPU, for all layers of the network and without the optimizer: the time of each operation itself, and its share of
the whole. What is left is the time of Python, and of starting operations.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
import doc_tables  # noqa: E402
import torch  # noqa: E402
from common import run  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402
from progress import track  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import orepa_mm.backbones.mmpretrain_backbones  # noqa: E402, F401
from orepa_mm.layers.kernels import OREPAKernel  # noqa: E402

PRODUCTS = ('aten::mm', 'aten::bmm', 'aten::addmm', 'aten::baddbmm', 'aten::baddbmm_')
HEADER = ('operation', 'ResNet-18, ms', 'share', 'ResNet-50, ms', 'share')
SHOWN = 8  # operations of the most time, products apart


def profiled(depth: int, steps: int) -> Counter[str]:
    """Milliseconds of one forward and one backward pass through all squeezing of a ResNet, by operation."""
    network = MODELS.build(dict(type='OREPAResNet', depth=depth))
    kernels = [module for module in network.modules() if isinstance(module, OREPAKernel)]
    grads = [torch.ones_like(kernel(torch.channels_last)) for kernel in kernels]

    def step() -> None:
        for kernel, grad in zip(kernels, grads, strict=True):
            torch.autograd.grad(kernel(torch.channels_last), list(kernel.parameters()), grad)

    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        name = event.key if event.key.startswith('aten::') else 'Python, starting operations'
        times['matrix products' if name in PRODUCTS else name] += event.self_cpu_time_total / 1e3 / steps
    return times


def table(small: Counter[str], large: Counter[str]) -> str:
    named = [name for name, _ in (small + large).most_common(SHOWN)]

    def row(name: str, values: tuple[float, float]) -> str:
        cells = (f'{value:.1f} | {value / sum(times.values()):.0%}' for value, times in zip(values, (small, large), strict=True))
        return f'| {name.removeprefix("aten::")} | {" | ".join(cells)} |'

    rest = tuple(sum(value for name, value in times.items() if name not in named) for times in (small, large))
    lines = [f'| {" | ".join(HEADER)} |', '|---|---:|---:|---:|---:|', *(row(name, (small[name], large[name])) for name in named)]
    return '\n'.join([*lines, row('all others', rest), row('together', (sum(small.values()), sum(large.values())))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=5, help='passes to average over')
    doc_tables.add_option(parser)
    args = parser.parse_args()
    if args.write:
        doc_tables.check(args.write, 'squeezing')
    text = table(*(profiled(depth, args.steps) for depth in track((18, 50), 'profiling')))
    print(text)
    if args.write:
        doc_tables.write(args.write, 'squeezing', text)


if __name__ == '__main__':
    run(main)
