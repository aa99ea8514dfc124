"""Hooks for runs of several processes: what each ends with, and ways to fail in one of them."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from orepa_mm import OREPAConv2d
from orepa_mm.engine.reparameterize_hook import ReparameterizeHook


@HOOKS.register_module(force=True)
class Report(Hook):
    """Every process writes ``rank<n>.pt``: weights at the start and the end, metrics, and the forms the model was in."""

    priority = 'LOWEST'

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.found = dict(trained=[], tested=[], metrics=[])

    def before_train(self, runner) -> None:
        self.found['start'] = weights(runner.model)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.found['trained'].append(branches(runner.model))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.found['tested'].append(branches(runner.model))

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.found['metrics'].append({key: value for key, value in metrics.items() if 'time' not in key})

    after_test_epoch = after_val_epoch

    def after_run(self, runner) -> None:
        self.found['end'] = weights(runner.model)
        self.found['differences'] = [
            part.difference for hook in runner.hooks for part in getattr(hook, 'parts', [hook]) if isinstance(part, ReparameterizeHook)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.found, self.folder / f'rank{get_rank()}.pt')


@HOOKS.register_module(force=True)
class FailInOne(Hook):
    """In one process: end it by a signal, or give it a weight that is not finite, which its comparison of forms then finds."""

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.how != 'nan' and runner.iter == 1 and get_rank() == self.rank:
            self.note(runner)
            os.kill(os.getpid(), getattr(signal, self.how))

    def before_val(self, runner) -> None:
        if self.how == 'nan' and get_rank() == self.rank:
            self.note(runner)
            with torch.no_grad():
                next(m for m in runner.model.modules() if isinstance(m, OREPAConv2d)).kernel.stages[0].origin.fill_(float('nan'))

    before_test = before_val

    def note(self, runner) -> None:
        (Path(runner.work_dir) / 'failed.json').write_text(json.dumps(dict(pid=os.getpid(), time=time.time())))


def branches(model: nn.Module) -> int:
    """How many layers compute their branches; in deployed form their plain forms compute in their place."""
    return sum(isinstance(module, OREPAConv2d) and 'forward' not in vars(module) for module in model.modules())


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix('module.'): value.detach().clone() for name, value in model.state_dict().items()}
