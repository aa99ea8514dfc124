"""Randomness that does not depend on what ran before, so that a resumed run goes on as if nothing had happened."""

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.dist import get_dist_info, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import Dataset


@HOOKS.register_module()
class SeedHook(Hook):
    """Derive every random number of a training from the run's seed, the iteration and the sample.

    A checkpoint holds no random states, and those of the dataloader's workers cannot be read. With this hook there is nothing to save:
    before each iteration the generators of Python, numpy and torch start from the seed, the rank and the iteration, and before each
    sample's augmentation from the seed, the epoch, the sample and its place in the epoch. A run that is stopped and resumed so ends with
    the weights of one that is not, whatever the number of workers. The seed is ``randomness.seed`` of the config, or what mmengine drew;
    its checkpoints hold it.

    Dataset wrappers that look samples up in a table of their own (``ClassBalancedDataset``) lose the place; a warning says so.

    Fires before a training, before each of its epochs and before each of its iterations::

        custom_hooks = [dict(type='SeedHook')]
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
        for dataset in _with_pipelines(loader.dataset):
            transforms = [step for step in dataset.pipeline.transforms if not isinstance(step, _SeedSample)]
            dataset.pipeline.transforms = [_SeedSample(runner.seed), *transforms]
        lost = [type(wrapper).__name__ for wrapper in _wrappers(loader.dataset) if not _keeps_place(wrapper)]
        if lost or sampler is None:
            what = lost[0] if lost else type(loader.batch_sampler).__name__
            print_log(
                f'SeedHook: {what} does not tell a sample its place: a resumed run draws other augmentation.', 'current', logging.WARNING
            )

    def before_train_epoch(self, runner: Runner) -> None:
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
    """A sample's number that knows where it stands: epoch and place in it. Repeated and concatenated datasets compute with it."""

    place: tuple[int, int]

    def __new__(cls, value: int, place: tuple[int, int]) -> '_Index':
        index = super().__new__(cls, value)
        index.place = place
        return index

    def __getnewargs__(self) -> tuple[int, tuple[int, int]]:  # type: ignore[override]  # what __new__ takes here
        return int(self), self.place

    def __mod__(self, other: int) -> '_Index':
        return _Index(int(self) % other, self.place)

    def __sub__(self, other: int) -> '_Index':
        return _Index(int(self) - other, self.place)


class _Places:
    """A sampler whose numbers are :class:`_Index`.

    Args:
        sampler: The one of the config.

    Attributes:
        epoch: Of the next pass.
        start: Place of the next pass's first sample.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.epoch, self.start = sampler, 0, 0

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


class _SeedSample:
    """A transform that changes nothing but the state of the generators.

    Samples without a place, such as those that are mixed into another, go on with its generators.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        index = results['sample_idx']
        if isinstance(index, _Index):
            # Augmentation computes on the CPU, and seeding every device takes a millisecond where they are not in use.
            _start_from(torch.default_generator.manual_seed, self.seed, int(index), *index.place)
        return results


def _start_from(seed_torch: Callable[[int], torch.Generator], *numbers: int) -> None:
    state = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    seed_torch(int(state[2]))


def _wrappers(dataset: Dataset[Any]) -> Iterator[Dataset[Any]]:
    """The datasets around others."""
    inner = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]
    inner = [each for each in inner if each is not None]
    if inner:
        yield dataset
    for each in inner:
        yield from _wrappers(each)


def _keeps_place(wrapper: Dataset[Any]) -> bool:
    """Whether a wrapper hands on the number it was given, or computes with it."""
    return isinstance(wrapper, RepeatDataset | ConcatDataset) or hasattr(wrapper, 'update_skip_type_keys')  # the last mixes


def _with_pipelines(dataset: Any) -> Iterator[Any]:
    """The datasets that load samples, inside wrappers such as those that repeat or join them."""
    if hasattr(getattr(dataset, 'pipeline', None), 'transforms') and hasattr(dataset, 'get_data_info') and not hasattr(dataset, 'dataset'):
        yield dataset
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]:
        if inner is not None:
            yield from _with_pipelines(inner)
