"""A sample's augmentation follows from the seed and the sample's place in the training, however many workers there are."""

import importlib
import random
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import few
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, DefaultSampler, InfiniteSampler, RepeatDataset
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import IterableDataset

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

    def __init__(self, key: str = 'drawn') -> None:
        self.key = key

    def __call__(self, results: dict) -> dict:
        if self.key == 'drawn':
            time.sleep(0.01 * (time.monotonic_ns() // 1000 % 3))
        drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
        return {'number': results['number'], 'drawn': results.get('drawn'), self.key: torch.tensor(drawn, dtype=torch.float64)}


def numbers(wrapper: str = '') -> object:
    dataset = Numbers(pipeline=[dict(type='DrawLate')])
    if wrapper == 'repeat':
        return RepeatDataset(dataset, 3)
    if wrapper == 'concat':
        return ConcatDataset([Numbers(pipeline=[dict(type='DrawLate')]), dataset])
    return ClassBalancedDataset(dataset, 0.9) if wrapper == 'balanced' else dataset


SECOND = [dict(type='DrawLate'), dict(type='DrawLate', key='again')]
SWITCHES = dict(  # to another pipeline before the third epoch
    mmdet=dict(type='mmdet.PipelineSwitchHook', switch_epoch=2, switch_pipeline=SECOND),
    mmpretrain=dict(type='mmpretrain.SwitchRecipeHook', schedule=[dict(action_epoch=3, train_pipeline=SECOND)]),
)


def batches(workers: int, by_epoch: bool, first: int = 0, wrapper: str = '', skips: bool = True, switch: str = '') -> list[dict]:
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
    loop.dataloader = loader
    runner = SimpleNamespace(train_dataloader=loader, train_loop=loop, seed=7, iter=first, epoch=0, logger=Mock(), _resume=bool(first))
    hook, length, found = SeedHook(), len(loader), []
    hooks = [hook, *([HOOKS.build(SWITCHES[switch])] if switch else [])]
    runner.epoch = first // length if by_epoch else 0
    for each in hooks:
        each.before_train(runner)
    if not by_epoch:
        hook.before_train_epoch(runner)
        if skips:
            loader.sampler.skip(first * 3)
        iterator = iter(loader)
        found = [next(iterator) for _ in range(TOTAL - (first if skips else 0))]
        return found if skips else found[first:]
    for epoch in range(first // length, TOTAL // length):
        runner.epoch = epoch
        for each in hooks:
            each.before_train_epoch(runner)
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and x['number'] == y['number'] and torch.equal(drawn(x), drawn(y)) for x, y in zip(a, b, strict=True)
    )


def drawn(batch: dict) -> torch.Tensor:
    return torch.cat([torch.stack(batch[key]) for key in ('drawn', 'again') if key in batch])


@pytest.mark.parametrize('wrapper', few(['', 'repeat', 'concat', 'balanced'], 'balanced'))
@pytest.mark.parametrize('by_epoch', [False, True])
def test_workers_and_resuming_change_nothing(by_epoch, wrapper):
    expected = batches(0, by_epoch, wrapper=wrapper)
    numbers_drawn = torch.cat([drawn(batch) for batch in expected])[:, 2]
    assert len(numbers_drawn.unique()) == len(numbers_drawn)  # every visit of a sample has numbers of its own
    assert same(batches(3, by_epoch, wrapper=wrapper), expected)
    first = 2 * (-(-len(numbers(wrapper)) // 3)) if by_epoch else 4  # of the third epoch
    assert same(batches(3, by_epoch, first=first, wrapper=wrapper), expected[first:])
    if not by_epoch:
        assert same(batches(2, by_epoch, first=5, wrapper=wrapper, skips=False), expected[5:])


@pytest.mark.parametrize(('workers', 'switch'), [(0, 'mmpretrain'), (2, 'mmdet')])
def test_a_pipeline_that_a_hook_replaces_is_seeded_as_well(workers, switch, toolboxes):
    for scope in SWITCHES:
        importlib.import_module(f'{scope}.engine')
    expected = batches(0, by_epoch=True, switch=switch)
    assert ['again' in batch for batch in expected] == [False] * 4 + [True] * (TOTAL - 4)
    assert same(batches(workers, by_epoch=True, first=6, switch=switch), expected[6:])


def test_a_loader_whose_samples_have_no_place_is_named(capsys):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(9)

    loader = Runner.build_dataloader(dict(batch_size=3, num_workers=0, dataset=Stream(), sampler=None))
    SeedHook().before_train(SimpleNamespace(train_dataloader=loader, seed=7))
    assert 'Stream does not tell a sample its place' in capsys.readouterr().out


def test_a_sample_seeds_no_device_but_the_cpu(monkeypatch):
    """torch.manual_seed writes a stack trace for each kind of device that is not in use."""
    monkeypatch.setattr(torch, 'manual_seed', Mock(side_effect=AssertionError))
    assert len(batches(0, by_epoch=True)) == TOTAL
