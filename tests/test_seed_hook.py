"""A sample's augmentation follows from the seed and the sample's place in the training, however many workers there are."""

import random
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import few
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, DefaultSampler, InfiniteSampler, RepeatDataset
from mmengine.registry import TRANSFORMS
from mmengine.runner import EpochBasedTrainLoop, Runner

from orepa_mm.engine.seed_hook import SeedHook

TOTAL = 20  # iterations


class Numbers(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(5)]

    def get_cat_ids(self, idx: int) -> list[int]:
        return [idx % 2]


@TRANSFORMS.register_module(force=True)
class DrawLate:
    """Draws from all generators, workers at different speeds: the same sample is drawn for two batches at the same time."""

    def __call__(self, results: dict) -> dict:
        time.sleep(0.02 * (time.monotonic_ns() // 1000 % 3))
        drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
        return dict(number=results['number'], drawn=torch.tensor(drawn, dtype=torch.float64))


def numbers(wrapper: str = '') -> object:
    dataset = Numbers(pipeline=[dict(type='DrawLate')])
    if wrapper == 'repeat':
        return RepeatDataset(dataset, 3)
    if wrapper == 'concat':
        return ConcatDataset([Numbers(pipeline=[dict(type='DrawLate')]), dataset])
    return ClassBalancedDataset(dataset, 0.9) if wrapper == 'balanced' else dataset


def batches(workers: int, by_epoch: bool, first: int = 0, wrapper: str = '', skips: bool = True) -> list[dict]:
    """Iterations ``first`` to the last as mmengine's loops ask for them; two a pass."""
    dataset = numbers(wrapper)
    kind = DefaultSampler if by_epoch else InfiniteSampler
    skips = skips and hasattr(kind, 'skip')  # OneDL's mmengine has it, the official one asks for the samples again
    if not skips and not by_epoch:
        kind = type('Sampler', (), {name: getattr(kind, name) for name in vars(kind) if name != 'skip'})
    loader = Runner.build_dataloader(
        dict(batch_size=3, num_workers=workers, persistent_workers=workers > 0, dataset=dataset, sampler=dict(type=kind))
    )
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop) if by_epoch else SimpleNamespace()
    runner = SimpleNamespace(train_dataloader=loader, train_loop=loop, seed=7, iter=first, epoch=0)
    hook, length, found = SeedHook(), len(loader), []
    hook.before_train(runner)
    if not by_epoch:
        hook.before_train_epoch(runner)
        if skips:
            loader.sampler.skip(first * 3)
        iterator = iter(loader)
        found = [next(iterator) for _ in range(TOTAL - (first if skips else 0))]
        return found if skips else found[first:]
    for epoch in range(first // length, TOTAL // length):
        runner.epoch = epoch
        hook.before_train_epoch(runner)
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        x['number'] == y['number'] and torch.equal(torch.stack(x['drawn']), torch.stack(y['drawn'])) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize('wrapper', few(['', 'repeat', 'concat'], 'concat'))
@pytest.mark.parametrize('by_epoch', [False, True])
def test_workers_and_resuming_change_nothing(by_epoch, wrapper):
    expected = batches(0, by_epoch, wrapper=wrapper)
    drawn = torch.cat([torch.stack(batch['drawn']) for batch in expected])[:, 2]
    assert len(drawn.unique()) == len(drawn)  # every visit of a sample has numbers of its own
    assert same(batches(3, by_epoch, wrapper=wrapper), expected)
    first = 2 * (-(-len(numbers(wrapper)) // 3)) if by_epoch else 4  # of the third epoch
    assert same(batches(3, by_epoch, first=first, wrapper=wrapper), expected[first:])
    if not by_epoch:
        assert same(batches(2, by_epoch, first=5, wrapper=wrapper, skips=False), expected[5:])


def test_a_wrapper_with_a_table_is_named(capsys):
    runner = SimpleNamespace(
        train_dataloader=Runner.build_dataloader(
            dict(batch_size=3, num_workers=0, dataset=numbers('balanced'), sampler=dict(type='InfiniteSampler'))
        ),
        seed=7,
    )
    SeedHook().before_train(runner)
    assert 'ClassBalancedDataset does not tell a sample its place' in capsys.readouterr().out


def test_a_sample_seeds_no_device_but_the_cpu(monkeypatch):
    """torch.manual_seed writes a stack trace for each kind of device that is not in use."""
    monkeypatch.setattr(torch, 'manual_seed', Mock(side_effect=AssertionError))
    assert len(batches(0, by_epoch=True)) == TOTAL
