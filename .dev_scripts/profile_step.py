#!/usr/bin/env python3
"""What a small training step spends its time on, without branches and with them: where nothing dilutes what they add.

    python .dev_scripts/profile_step.py                        # ResNet-18, batch 8 at 64, a table in the terminal
    python .dev_scripts/profile_step.py --write docs/speed.md

By torch's profiler on a CPU: milliseconds of each kind of operation itself. What is left is the time of Python, and of starting operations.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
import benchmark  # noqa: E402
import doc_tables  # noqa: E402
from common import run  # noqa: E402
from progress import track  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

METHODS = ('none', benchmark.FIXED, benchmark.LIGHT, 'OREPA')
KINDS = {
    'convolutions': ('convolution', 'thnn_conv'),
    'batch norms': ('batch_norm',),
    'SGD': ('_fused_sgd_',),
    'matrix products': ('aten::mm', 'aten::bmm', 'aten::addmm', 'aten::baddbmm'),
    'other operations': ('aten::',),
}
LEFT = 'Python, starting operations'


def profiled(method: str, args: argparse.Namespace) -> Counter[str]:
    """Milliseconds of a training step by kind of operation."""
    task = benchmark.Classification('resnet18', args)
    step = benchmark.training_step(task, benchmark.build(task, method, args), args, method)
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(args.steps):
            step()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), LEFT)
        times[kind] += event.self_cpu_time_total / 1e3 / args.steps
    return times


def table(found: dict[str, Counter[str]]) -> str:
    rows = [['', *found]]
    rows += [[kind, *(f'{times[kind]:.1f}' for times in found.values())] for kind in (*KINDS, LEFT)]
    rows.append(['together', *(f'{sum(times.values()):.1f}' for times in found.values())])
    return doc_tables.markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=20, help='to average over')
    doc_tables.add_option(parser)
    parser.set_defaults(batch=8, size=(64, 64), device='cpu', dtype='float32', channels_last=False, compile=False)
    args = parser.parse_args()
    if args.write:
        doc_tables.check(args.write, 'step')
    text = table({method: profiled(method, args) for method in track(METHODS, 'profiling')})
    print(text)
    if args.write:
        doc_tables.write(args.write, 'step', text)


if __name__ == '__main__':
    run(main)
