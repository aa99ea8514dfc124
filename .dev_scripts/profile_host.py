#!/usr/bin/env python3
"""What training costs the processor that starts a GPU's work, without branches and with them.

    python .dev_scripts/profile_host.py                        # ResNet-50, a table in the terminal
    python .dev_scripts/profile_host.py --write docs/speed.md

Where a GPU waits for Python, this is what branches add to a step. Taken on a CPU: a ResNet-50 so narrow and pictures so small that the
operations themselves take next to nothing, and CUDA graphs that do nothing when they are started. Processor time of one thread.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
import benchmark  # noqa: E402
import doc_tables  # noqa: E402
import torch  # noqa: E402
from common import run  # noqa: E402
from torch import nn  # noqa: E402

from orepa_mm.layers import squeeze_graph  # noqa: E402

METHODS = ('none', benchmark.FIXED, benchmark.LIGHT, 'OREPA')
PARTS = ('forward', 'backward', 'SGD')


def parts(task: benchmark.Classification, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Seconds of the processor that each part of a step takes."""
    times = [time.process_time()]
    loss = task.loss(model)
    times.append(time.process_time())
    loss.backward()
    times.append(time.process_time())
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.process_time())
    return [end - start for start, end in zip(times, times[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=40, help='rounds, of which the median is taken')
    doc_tables.add_option(parser)
    parser.set_defaults(batch=2, size=(32, 32), device='cpu', dtype='float32', channels_last=True)
    args = parser.parse_args()
    if args.write:
        doc_tables.check(args.write, 'host')
    torch.set_num_threads(1)
    squeeze_graph.capture = lambda call, pool=None: (call(), lambda: None, 'pool')
    squeeze_graph.warm_up = lambda call: None

    task = benchmark.Classification('resnet50', args)
    task.backbone = dict(task.backbone, base_channels=4, stem_channels=32)
    models = {method: benchmark.build(task, method, args).train() for method in METHODS}
    graphs = [squeeze_graph.SqueezeGraph(model) for method, model in models.items() if method not in ('none', benchmark.FIXED)]
    optimizers = {method: benchmark.build_optimizer(model, method) for method, model in models.items()}
    times: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    for step in range(args.steps + 4):
        for method in METHODS:
            found = parts(task, models[method], optimizers[method])
            if step >= 4:
                times[method].append(found)
    for graph in graphs:
        graph.remove()
    medians = {method: [1e3 * statistics.median(column) for column in zip(*rows, strict=True)] for method, rows in times.items()}
    rows = [['', *METHODS], ['parameters', *(str(len(list(model.parameters()))) for model in models.values())]]
    rows += [[f'{part}, ms', *(f'{medians[method][index]:.1f}' for method in METHODS)] for index, part in enumerate(PARTS)]
    rows.append(['together, ms', *(f'{sum(medians[method]):.1f}' for method in METHODS)])
    text = doc_tables.markdown(rows)
    print(text)
    if args.write:
        doc_tables.write(args.write, 'host', text)


if __name__ == '__main__':
    run(main)
