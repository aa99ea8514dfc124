"""A study: methods compared on one config, each with a learning rate of its own, over several seeds."""

import json
import re
import shutil
import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import merge_options
from mmengine.config import Config
from preflight import check_data
from runs import RESULTS, Run, Runs, run_of

import orepa_mm
from orepa_mm.deploy.loading import build_model, load_model
from orepa_mm.errors import UsageError
from orepa_mm.files import replacing, save

MARK = 'pretrained:'
RATE, SEED = 'optim_wrapper.optimizer.lr', 'randomness.seed'
FIRST_RATE_SEED = 1000  # seeds that choose a learning rate are none of those that compare


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Args:
        name: The file's, without its ending.
        config: What all methods share, in a file beside. Its validation part chooses learning rates, its test part compares.
        metric: By which methods are compared, as the toolbox names it; more is better.
        baseline: The method the others are compared with.
        methods: The settings each overrides, by their dotted paths.
        learning_rates: Tried for each method.
        lr_seeds: Runs for each of them, by whose mean the best is chosen.
        seeds: Runs for each method at its learning rate.
        pretrained: Networks to train first, whose checkpoints a setting ``'pretrained:NAME'`` stands for: a config, and the settings that
            are overridden in it; or with ``expand`` another of them given branches by :func:`orepa_mm.expand` with these arguments.
        folds: Settings that go with the seeds in turn, such as the parts of the data that train and test.
        data_root: What ``data`` takes the place of, at the beginning of every setting.
        data: None: nothing does.
    """

    name: str
    config: Config
    metric: str
    baseline: str
    methods: dict[str, dict[str, Any]]
    learning_rates: tuple[float, ...]
    lr_seeds: int = 2
    seeds: int = 5
    pretrained: dict[str, dict[str, Any]] = field(default_factory=dict)
    folds: tuple[dict[str, Any], ...] = ({},)
    data_root: str | None = None
    data: str | None = None

    @property
    def total(self) -> int:
        """The number of its runs."""
        choosing = len(self.learning_rates) * self.lr_seeds if len(self.learning_rates) > 1 else 0
        return sum('expand' not in each for each in self.pretrained.values()) + len(self.methods) * (choosing + self.seeds)


def read_study(path: Path, data: Path | None = None, seeds: int | None = None) -> Study:
    """The study in a Python file of the form of a config, with ``data`` for its ``data_root`` and another number of seeds, if given.

    Raises:
        UsageError: When something in the file is missing, unknown or contradicts the rest.
    """
    if not path.is_file():
        raise UsageError(f'{path}: no such study file.')
    given = {name: value for name, value in Config.fromfile(path).to_dict().items() if not name.startswith('_')}
    given |= dict(seeds=seeds) if seeds is not None else {}
    given |= dict(data=f'{data.resolve()}/') if data is not None else {}
    try:
        given['config'] = Config.fromfile(path.parent / given['config'])
        for each in given.get('pretrained', {}).values():
            if 'expand' not in each:
                each['config'] = Config.fromfile(path.parent / each['config'])
        study = Study(path.stem, **given)
    except (TypeError, KeyError, FileNotFoundError) as error:
        raise UsageError(f'{path}: {type(error).__name__}: {error}; Study in {__file__} says what a study file has.') from None
    asked = {text.removeprefix(MARK) for text in re.findall(rf'{MARK}[^\'"]+', repr(study.methods))}
    asked |= {each['of'] for each in study.pretrained.values() if 'expand' in each}
    wrong = {
        f'baseline {study.baseline!r} is not among the methods': study.baseline not in study.methods,
        f'seeds={study.seeds}: an interval takes at least 2': study.seeds < 2,
        'methods: two have the same letters and digits in their names': len({slug(name) for name in study.methods}) < len(study.methods),
        f'{MARK}{", ".join(asked - study.pretrained.keys())} is not among the pretrained': asked - study.pretrained.keys(),
        f'{data}: no such folder of data, or no data_root it could take the place of': data and not (data.is_dir() and study.data_root),
    }
    for message, is_so in wrong.items():
        if is_so:
            raise UsageError(f'{path}: {message}.')
    return study


def slug(name: str) -> str:
    """``name`` as the name of a folder."""
    return re.sub(r'[^\w.+-]+', '_', name)


def replaced(value: Any, start: str, by: str, whole: bool = False) -> Any:
    """``value`` with ``by`` for ``start`` at the beginning of every text in it, or for texts that are ``start`` as a whole."""
    if isinstance(value, dict):
        return {key: replaced(each, start, by, whole) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(each, start, by, whole) for each in value)
    if isinstance(value, str) and (value == start or (value + '/' == start and not whole)):
        return by
    return by + value.removeprefix(start) if isinstance(value, str) and not whole and value.startswith(start) else value


class Plan:
    """The runs of a study in the folder ``out``."""

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.out = study, out

    def pretraining(self, name: str) -> Run:
        each = self.study.pretrained[name]
        options = each.get('options', {}) | {SEED: 0}
        return self._run(each['config'], options, f'pretrain/{slug(name)}', 'val', phase='pretrain', method=name, seed=0)

    def choosing(self) -> list[Run]:
        """The runs that choose each method's learning rate, one seed after the other."""
        rates = self.study.learning_rates
        seeds = range(FIRST_RATE_SEED, FIRST_RATE_SEED + self.study.lr_seeds) if len(rates) > 1 else ()
        return [self._of('choose', method, rate, seed, 'val') for seed in seeds for method in self.study.methods for rate in rates]

    def comparing(self, rates: dict[str, float]) -> list[Run]:
        """The runs of each method that has a learning rate, one seed after the other."""
        return [self._of('compare', method, rate, seed, 'test') for seed in range(self.study.seeds) for method, rate in rates.items()]

    def checkpoint(self, name: str) -> Path:
        """Where the pretrained network ``name`` is kept."""
        return self.out / 'pretrained' / f'{slug(name)}.pth'

    def _of(self, phase: str, method: str, rate: float, seed: int, test_on: str) -> Run:
        folds = self.study.folds
        options = folds[seed % len(folds)] | self.study.methods[method] | {RATE: rate, SEED: seed}
        name = f'{phase}/{slug(method)}/lr_{rate:g}/seed_{seed}'
        return self._run(self.study.config, options, name, test_on, phase=phase, method=method, lr=rate, seed=seed)

    def _run(self, config: Config, options: dict[str, Any], name: str, test_on: str, **labels: Any) -> Run:
        if self.study.data is not None:
            options = replaced(options, self.study.data_root, self.study.data)
        for each in self.study.pretrained:
            options = replaced(options, MARK + each, str(self.checkpoint(each)), whole=True)
        return run_of(self.with_data(config), options, name, test_on=test_on, **labels)

    def with_data(self, config: Config) -> Config:
        """``config`` with the study's data for those it names."""
        if self.study.data is None:
            return config
        return Config(replaced(config.to_dict(), self.study.data_root, self.study.data), filename=config.filename)


def check(study: Study, plan: Plan) -> None:
    """Build each method's model and look at the data, before hours are spent; UsageError names the method that cannot be built."""
    for method, options in study.methods.items():
        cfg = deepcopy(study.config)
        try:
            merge_options(cfg, options)
            build_model(cfg)
        except Exception as error:
            raise UsageError(f'{study.name}: method {method!r} cannot be built: {" ".join(str(error).split())[:300]}') from error
    for cfg in (study.config, *(each['config'] for each in study.pretrained.values() if 'config' in each)):
        check_data(plan.with_data(cfg), ('train', 'val', 'test'))


def claim(study: Study, out: Path) -> None:
    """Mark the folder ``out``, empty or with records to go on with, as this study's; UsageError when it holds anything else."""
    path = out / 'study.json'
    owner = json.loads(path.read_text())['study'] if path.is_file() else None
    if owner not in (None, study.name):
        raise UsageError(f'{out}: holds the results of the study {owner!r}, not of {study.name!r}; give another --out.')
    if owner is None and out.is_dir() and any(path.name != RESULTS for path in out.iterdir()):
        raise UsageError(f'{out}: holds something else than the results of a study; give another --out.')
    with replacing(path) as partial:
        partial.write_text(json.dumps(dict(study=study.name)) + '\n')


def chosen_rates(study: Study, records: list[dict[str, Any]]) -> dict[str, float]:
    """The learning rate of each method with the best mean metric; one of whose runs any failed is not chosen.

    Returns:
        Rates by method, without those of which no rate came through.
    """
    if len(study.learning_rates) == 1:
        return dict.fromkeys(study.methods, study.learning_rates[0])
    means: dict[str, dict[float, float]] = {method: {} for method in study.methods}
    for method, found in means.items():
        for rate in study.learning_rates:
            runs = [record for record in records if (record['method'], record['lr']) == (method, rate)]
            if runs and not any('error' in record for record in runs):
                found[rate] = statistics.mean(metric_of(study, record) for record in runs)
    return {method: max(found, key=found.__getitem__) for method, found in means.items() if found}


def metric_of(study: Study, record: dict[str, Any]) -> float:
    if study.metric not in record['metrics']:
        raise UsageError(f'metric {study.metric}: {record["run"]} has {", ".join(record["metrics"])}. What has run is kept.')
    return record['metrics'][study.metric]


def carry_out(study: Study, out: Path, jobs: int, done: Callable[[dict[str, dict[str, Any]]], object]) -> dict[str, dict[str, Any]]:
    """Run what of a study is not run yet, in ``out``; ``done`` gets all records so far after each run of the comparison.

    Returns:
        All records by their runs' names.

    Raises:
        UsageError: As :func:`check` and :class:`.Runs`; when a network that others start from failed; for an unknown metric.
    """
    out = out.resolve()
    plan = Plan(study, out)
    check(study, plan)
    claim(study, out)

    def ended(record: dict[str, Any]) -> None:
        if 'error' not in record and record['phase'] != 'pretrain':
            metric_of(study, record)  # a wrong name shows after the first run, not after the last
        if record['phase'] == 'compare':
            done(runs.records)

    with Runs(out, jobs, study.total, ended) as runs:
        pretrain(plan, runs)
        rates = chosen_rates(study, runs.carry_out(plan.choosing()))
        runs.carry_out(plan.comparing(rates))
        return runs.records


def pretrain(plan: Plan, runs: Runs) -> None:
    """Train the networks that others start from, and keep their checkpoints; then those with branches that are made of them."""
    study = plan.study
    trained = {name: plan.pretraining(name) for name, each in study.pretrained.items() if 'expand' not in each}
    left = {name: run for name, run in trained.items() if not plan.checkpoint(name).is_file()}
    for run in left.values():
        if not (runs.work_dir(run) / 'last_checkpoint').is_file():
            runs.records.pop(run.name, None)  # it is gone, and trained again
    for name, record in zip(trained, runs.carry_out(list(trained.values())), strict=True):
        if 'error' in record:
            raise UsageError(f'pretrained {name!r}, which other runs start from, failed: {record["error"]}')
    for name, run in left.items():
        last = runs.work_dir(run) / Path((runs.work_dir(run) / 'last_checkpoint').read_text().strip()).name
        with replacing(plan.checkpoint(name)) as partial:
            shutil.copy(last, partial)
    for name, each in study.pretrained.items():
        if 'expand' in each and not plan.checkpoint(name).is_file():
            torch.manual_seed(0)  # what branches draw
            model = load_model(Config.fromfile(runs.config_path(trained[each['of']])), plan.checkpoint(each['of']))
            orepa_mm.expand(model, **each['expand'])
            save(dict(state_dict=model.state_dict()), plan.checkpoint(name))
