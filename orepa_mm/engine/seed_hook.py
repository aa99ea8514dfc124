"""Randomness that does not depend on what ran before, so that a resumed run goes on as if nothing had happened."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import IterableDataset


@HOOKS.register_module()
class SeedHook(Hook):
    """Derive every random number of a training from the run's seed, the iteration and the sample.

    A checkpoint holds no random states, and those of the dataloader's workers cannot be read. With this hook there is nothing to save:
    before each iteration the generators of Python, numpy and torch start from the seed, the rank and the iteration, and before each
    sample's augmentation from the seed, the epoch, the sample and its place in the epoch. A run that is stopped and resumed so ends with
    the weights of one that is not, whatever the number of workers. The seed is ``randomness.seed`` of the config, or what mmengine drew;
    its checkpoints hold it. What transforms keep of earlier samples (``CachedMosaic``) is gone after a stop.

    Fires before a training, before each of its epochs and before each of its iterations::

        default_hooks = dict(seed=dict(type='SeedHook'))
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._places: _Places | None = None

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        sampler: Any = getattr(loader.batch_sampler, 'sampler', None)
        sampler = sampler.sampler if isinstance(sampler, _Places) else sampler
        if hasattr(sampler, 'seed'):
            sampler.seed = runner.seed  # otherwise drawn anew when a run without a seed of its own is resumed
        if sampler is not None:
            self._places = loader.batch_sampler.sampler = _Places(sampler)
        if sampler is None or isinstance(loader.dataset, IterableDataset):
            what = type(loader.batch_sampler if sampler is None else loader.dataset).__name__
            print_log(
                f'SeedHook: {what} does not tell a sample its place: a resumed run draws other augmentation.', 'current', logging.WARNING
            )
        else:
            # Torch's loaders ask a dataset that has this for a batch. What is inside it, wrappers and pipelines, may change meanwhile.
            loader.dataset.__getitems__ = _SeededSamples(loader.dataset, runner.seed)

    def before_train_epoch(self, runner: Runner) -> None:
        # What loaders, workers and other hooks draw as an epoch begins.
        _start_from(torch.default_generator.manual_seed, runner.seed, get_rank(), runner.iter)
        if self._places is None:
            return
        loader, by_epoch = runner.train_dataloader, isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._places.epoch = runner.epoch if by_epoch else 0
        # A resumed run by iterations passes over samples without asking for them, or else asks for them all once more.
        skips = not by_epoch and hasattr(self._places.sampler, 'skip') and loader.batch_size is not None
        self._places.start = runner.iter * loader.batch_size if skips else 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        _start_from(torch.manual_seed, runner.seed, get_rank(), runner.iter)


class _Index(int):
    """A sample's number that knows where it stands: epoch and place in it."""

    place: tuple[int, int]

    def __new__(cls, value: int, place: tuple[int, int]) -> '_Index':
        index = super().__new__(cls, value)
        index.place = place
        return index

    def __getnewargs__(self) -> tuple[int, tuple[int, int]]:  # type: ignore[override]  # what __new__ takes here
        return int(self), self.place


class _Places:
    """The config's sampler, with numbers that are :class:`_Index`."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.epoch, self.start = sampler, 0, 0  # of the next pass, with the place of its first sample

    def __iter__(self) -> Iterator[_Index]:
        epoch, start = self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        rank, processes = get_dist_info()
        for place, index in enumerate(self.sampler, start):
            yield _Index(index, (epoch, rank + place * processes))  # mmengine's samplers deal the samples out in turn

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == 'sampler':  # not there while a copy is made
            raise AttributeError(name)
        return getattr(self.sampler, name)  # what batch samplers and loops ask of the config's: set_epoch, dataset


class _SeededSamples:
    """Samples of a dataset, each loaded from generators that start anew; what it mixes in goes on with its generators."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __call__(self, indices: Iterable[int]) -> list[Any]:
        return [self._sample(index) for index in indices]

    def _sample(self, index: int) -> Any:
        if isinstance(index, _Index):  # and not one that a batch sampler has made
            # Augmentation computes on the CPU, and seeding every device takes a millisecond where they are not in use.
            _start_from(torch.default_generator.manual_seed, self.seed, int(index), *index.place)
        return self.dataset[int(index)]


def _start_from(seed_torch: Callable[[int], torch.Generator], *numbers: int) -> None:
    state = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    seed_torch(int(state[2]))
