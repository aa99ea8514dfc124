"""Randomness that does not depend on what ran before, so that a resumed run goes on as if nothing had happened."""

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Dataset


@HOOKS.register_module()
class SeedHook(Hook):
    """Derive every random number of a training from the run's seed, the iteration and the sample.

    A checkpoint holds no random states, and those of the dataloader's workers cannot be read. With this hook there is nothing to save:
    before each iteration the generators of Python, numpy and torch start from the seed, the rank and the iteration, and before each
    sample's augmentation from the seed, the epoch and the sample. A run that is stopped and resumed so ends with the weights of one that is
    not, whatever the number of workers. The seed is ``randomness.seed`` of the config, or what mmengine drew; its checkpoints hold it.

    Fires before a training, before each of its epochs and before each of its iterations::

        custom_hooks = [dict(type='SeedHook')]
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._samples: list[_SeedSample] = []

    def before_train(self, runner) -> None:
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        if hasattr(sampler, 'seed'):
            sampler.seed = runner.seed  # otherwise drawn anew when a run without a seed of its own is resumed
        self._samples = [_SeedSample(runner.seed, len(dataset)) for dataset in _with_pipelines(loader.dataset)]
        for dataset, sample in zip(_with_pipelines(loader.dataset), self._samples, strict=True):
            transforms = [step for step in dataset.pipeline.transforms if not isinstance(step, _SeedSample)]
            dataset.pipeline.transforms = [sample, *transforms]

    def before_train_epoch(self, runner) -> None:
        for sample in self._samples:
            sample.epoch.fill_(runner.epoch)
            sample.visits.zero_()
        if runner.iter and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._count_skipped(runner)

    def _count_skipped(self, runner) -> None:
        """Count the samples that a resumed run by iterations passes over without loading them."""
        loader = runner.train_dataloader
        if len(self._samples) != 1 or not hasattr(loader.sampler, 'skip') or loader.batch_size is None:
            return  # then mmengine loads them
        sampler = type(loader.sampler)(loader.dataset, shuffle=loader.sampler.shuffle, seed=loader.sampler.seed)
        indices = torch.tensor(list(islice(iter(sampler), runner.iter * loader.batch_size)), dtype=torch.long)
        self._samples[0].visits += torch.bincount(indices, minlength=len(loader.dataset)).to(torch.int32)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        _start_from(runner.seed, get_rank(), runner.iter)


class _SeedSample:
    """A transform that changes nothing but the state of the generators. Its counts are shared with the dataloader's workers."""

    def __init__(self, seed: int, samples: int) -> None:
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.visits = torch.zeros(samples, dtype=torch.int32).share_memory_()  # by a sample's number, in this epoch

    def __call__(self, results: dict) -> dict:
        index = results['sample_idx']
        _start_from(self.seed, int(self.epoch), index, int(self.visits[index]))
        self.visits[index] += 1
        return results


def _start_from(*numbers: int) -> None:
    state = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]))


def _with_pipelines(dataset: Dataset) -> Iterator[Dataset]:
    """The datasets that load samples, inside wrappers such as those that repeat or join them."""
    if hasattr(getattr(dataset, 'pipeline', None), 'transforms') and hasattr(dataset, 'get_data_info') and not hasattr(dataset, 'dataset'):
        yield dataset
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]:
        if inner is not None:
            yield from _with_pipelines(inner)
