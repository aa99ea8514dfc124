"""Runs of a few steps whose hook changes the model's parameters on the way."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import Dataset


@DATASETS.register_module()
class RandomPictures(Dataset):
    def __init__(self):
        self.data = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return dict(inputs=self.data[index])


def built(model: Any, hook: dict, work_dir: Path, epochs: int, by_iterations: bool = False, resume: bool = False, **changes) -> Runner:
    """A Runner of two steps an epoch with an averaged model and ``hook``, which acts after the first epoch or three iterations."""
    cfg = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            # At the end of other samplers an IterBasedTrainLoop sleeps for two seconds.
            sampler=dict(type='InfiniteSampler' if by_iterations else 'DefaultSampler', shuffle=False),
            dataset=dict(type='RandomPictures'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2 * epochs) if by_iterations else dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-3), clip_grad=dict(max_norm=10)),
        param_scheduler=dict(type='MultiStepLR', milestones=[2], by_epoch=not by_iterations),
        custom_hooks=[dict(type='CheckHook'), hook | (dict(iteration=3) if by_iterations else dict(epoch=1)), dict(type='EMAHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=not by_iterations)),
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}{epochs}',
        log_level='ERROR',
        resume=resume,
    )
    if isinstance(model, nn.Module):  # as somebody's own script builds it
        return Runner(**(cfg | changes))
    return (FlexibleRunner if 'strategy' in changes else Runner).from_cfg(Config(cfg | changes))


def run(*args, **options) -> Runner:
    runner = built(*args, **options)
    runner.train()
    return runner


def last_checkpoint(folder: Path) -> str:
    return (folder / 'last_checkpoint').read_text()


def check_resuming(whole: Runner, model: dict, hook: dict, work_dir: Path, by_iterations: bool) -> None:
    """Four epochs in two runs end where ``whole`` did, momenta included."""
    run(model, hook, work_dir, 3, by_iterations)
    resumed = run(model, hook, work_dir, 4, by_iterations, resume=True)
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    states = [runner.optim_wrapper.optimizer.state for runner in (whole, resumed)]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(states[0][a]['momentum_buffer'], states[1][b]['momentum_buffer'])
