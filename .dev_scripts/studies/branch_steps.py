#!/usr/bin/env python3
"""How far branches move a kernel for the gradient that a plain kernel would follow, and in which direction, over a training.

    python .dev_scripts/studies/branch_steps.py STUDY.py --data FOLDER [--steps 0 10 50] [--methods NAME ...]

Trains each method of a study that has branches beside the optimizer at its first seed. At the steps asked for it prints, by the kind of
convolution, the length of a step without momentum relative to the plain one, and the cosine between them: means over layers.
"""

import argparse
import sys
from collections import defaultdict
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools'), str(Path(__file__).resolve().parent)]
import torch  # noqa: E402
from common import merge_options, run  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from study import Plan, read_study  # noqa: E402

from orepa_mm.optim import attached_to  # noqa: E402

EPSILON = 1e-6


def kind_of(weight: torch.Tensor) -> str:
    _, per_group, size, _ = weight.shape
    return '1x1' if size == 1 else 'depthwise' if per_group == 1 else f'{size}x{size}'


def compared(update) -> tuple[float, float]:
    """Length and cosine of the branches' step relative to the plain one, for the gradient that is there."""
    grad = update.weight.grad.double()
    kernel = deepcopy(update.kernel).double()
    trained = [p for p in kernel.parameters() if p.requires_grad]
    kernel().backward(grad)
    with torch.no_grad():
        before = kernel()
        for parameter in trained:
            parameter -= EPSILON * parameter.grad
        moved = (before - kernel()).flatten() / EPSILON
    plain = grad.flatten()
    return (moved.norm() / plain.norm()).item(), torch.cosine_similarity(moved, plain, dim=0).item()


class StepsHook(Hook):
    """Looks at the gradients between the backward pass and the step, and ends the training after the last of ``steps``."""

    def __init__(self, steps: list[int]) -> None:
        self.steps, self.rows = steps, {}

    def before_train(self, runner: Runner) -> None:
        optimizer = runner.optim_wrapper.optimizer
        self.handle = optimizer.register_step_pre_hook(lambda *_: self.look(runner, attached_to(optimizer)))

    def look(self, runner: Runner, attached) -> None:
        if runner.iter in self.steps:
            kinds = defaultdict(list)
            for update in attached.updates:
                kinds[kind_of(update.weight)].append(compared(update))
            self.rows[runner.iter] = {
                kind: [sum(column) / len(found) for column in zip(*found, strict=True)] for kind, found in kinds.items()
            }
        if runner.iter >= max(self.steps):
            raise StopIteration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, metavar='STUDY.py')
    parser.add_argument('--data', type=Path, metavar='FOLDER', required=True)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/branch_steps'), metavar='DIR')
    parser.add_argument('--steps', type=int, nargs='+', default=[0, 10, 50])
    parser.add_argument('--rate', type=float, default=0.016)
    parser.add_argument('--methods', nargs='+', metavar='NAME')
    args = parser.parse_args()
    study = read_study(args.study, args.data)
    for name, options in study.methods.items():
        if options.get('default_hooks.branches', dict(scales='fixed')).get('scales') == 'fixed' or name not in (
            args.methods or study.methods
        ):
            continue
        planned = Plan(study, args.out).comparing({name: args.rate})[0]
        cfg = Config.fromstring(planned.config, '.py')
        merge_options(cfg, dict(work_dir=str(args.out)))
        runner, hook = Runner.from_cfg(cfg), StepsHook(args.steps)
        runner.register_hook(hook, priority='LOWEST')
        with suppress(StopIteration):
            runner.train()
        for step, kinds in hook.rows.items():
            print(
                f'| {name} | {step} | ' + ' | '.join(f'{kind} {ratio:.2f}, {cosine:.2f}' for kind, (ratio, cosine) in kinds.items()) + ' |',
                flush=True,
            )


if __name__ == '__main__':
    run(main)
