"""BranchesHook in runs: the model and its checkpoints are the stock network's, and stopped runs go on as if they had not."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, done, same
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import FlexibleRunner, Runner
from small_runs import built, last_checkpoint
from torch import nn

from orepa_mm import OREPAConv2d, reparameterize
from orepa_mm.checkpoints.beside import branches_beside, expand_as, training_form
from orepa_mm.checkpoints.reading import read_checkpoint
from orepa_mm.deploy.loading import build_model, load_model
from orepa_mm.engine.branches_hook import BranchesHook
from orepa_mm.errors import BranchesError, CheckpointError
from orepa_mm.optim import attached_to

FULL = dict(type='BranchesHook', pattern='backbone')
NONE = dict(type='IterTimerHook')  # in its place


@MODELS.register_module()
class SmallPlain(BaseModel):
    """A plain network; with ``inside`` its convolutions have branches in them."""

    def __init__(self, inside: bool = False) -> None:
        super().__init__()
        conv = OREPAConv2d if inside else nn.Conv2d
        self.backbone = nn.Sequential(conv(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, 3, groups=2), nn.Tanh(), conv(8, 4, 1))
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, inputs, mode='tensor'):
        out = self.head(self.backbone(inputs))
        return dict(loss=(out - 0.3).square().mean()) if mode == 'loss' else out


def run(work_dir: Path, epochs: int, hook: dict = FULL, by_iterations: bool = False, inside: bool = False, **options) -> Runner:
    """A run with an averaged model; ``hook`` among the default hooks, as in a config."""
    model = dict(type='SmallPlain', inside=inside)
    default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=not by_iterations), branches=hook)
    changes = dict(custom_hooks=[dict(type='EMAHook'), dict(type='CheckHook')], default_hooks=default_hooks) | options
    runner = built(model, dict(type='SeedHook'), work_dir, epochs, by_iterations, **changes)
    runner.train()
    return runner


def hook_of(runner: Runner) -> BranchesHook:
    return next(hook for hook in runner.hooks if isinstance(hook, BranchesHook))


def average_of(runner: Runner) -> nn.Module:
    return next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module


def branches_inside(runner: Runner) -> bool:
    return any(isinstance(module, OREPAConv2d) for module in runner.model.modules())


def apart(a: nn.Module, b: nn.Module) -> float:
    a, b = (reparameterize(copy.deepcopy(model).eval()).state_dict() for model in (a, b))
    return max(((a[name].double() - b[name].double()).abs().max() / a[name].abs().max().clamp_min(1)).item() for name in a)


@pytest.mark.parametrize('by_iterations', [False, True])
@pytest.mark.parametrize('options', [dict(), dict(branches='light', scales='fixed'), dict(method='ExpandNet')], ids=str)
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, options, by_iterations):
    whole = run(tmp_path / 'whole', 4, FULL | options, by_iterations)
    run(tmp_path / 'parts', 3, FULL | options, by_iterations)
    resumed = run(tmp_path / 'parts', 4, FULL | options, by_iterations, resume=True)
    assert len(hook_of(resumed).attached[0].updates) == 3  # those of the backbone
    assert same(whole.model, resumed.model) and same(average_of(whole), average_of(resumed))
    states = [runner.optim_wrapper.state_dict() for runner in (whole, resumed)]
    for path, values in states[0]['branches'].items():
        assert all(torch.equal(value, states[1]['branches'][path][name]) for name, value in values.items())


def test_the_checkpoint_is_that_of_the_stock_network_and_resumes_with_the_hook_alone(tmp_path):
    runner = run(tmp_path, 1)
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=False)
    assert checkpoint['state_dict'].keys() == SmallPlain().state_dict().keys()
    SmallPlain().load_state_dict(checkpoint['state_dict'])
    assert checkpoint['optimizer']['branches'].keys() == {'backbone.0', 'backbone.3', 'backbone.5'}
    assert not branches_inside(runner)
    with pytest.raises(CheckpointError, match='with the BranchesHook of that run'):
        run(tmp_path, 2, hook=NONE, resume=True)


def test_a_plain_run_is_resumed_with_branches(tmp_path):
    """They start from its weights, without momentum; its schedule and its averages go on."""
    plain = run(tmp_path, 3, hook=NONE)
    resumed = run(tmp_path, 4, resume=True)
    assert hook_of(resumed).attached and resumed.epoch == 4
    assert not same(plain.model, resumed.model)
    assert 'branches' in torch.load(last_checkpoint(tmp_path), weights_only=False)['optimizer']


@pytest.mark.parametrize(
    'options',
    [
        dict(optim_wrapper=dict(accumulative_counts=2, optimizer=dict(type='AdamW', lr=0.001))),
        dict(
            optim_wrapper=dict(
                constructor='OREPAOptimWrapperConstructor',
                optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
                paramwise_cfg=dict(custom_keys={'backbone.0': dict(lr_mult=0.0)}),
            )
        ),
        pytest.param(dict(compile=dict(backend='eager')), marks=pytest.mark.slow),
        dict(auto_scale_lr=dict(enable=True, base_batch_size=8)),
    ],
    ids=['accumulation', 'custom_keys', 'compile', 'auto_scale_lr'],
)
def test_it_trains_with_what_else_a_run_can_do(tmp_path, options):
    """Every branch of what trains has moved, and weights are what their branches add up to."""
    beside = run(tmp_path, 1, **options, custom_hooks=[])
    moved = {}
    for update in hook_of(beside).attached[0].updates:
        started = copy.deepcopy(update.kernel)
        started.represent(update.weight)
        moved[update.path] = not torch.equal(update.kernel.scale, started.scale)
        assert (update.kernel() - update.weight).abs().max() <= 1e-5 * update.weight.abs().max()
    assert moved == {'backbone.0': 'custom_keys' not in str(options), 'backbone.3': True, 'backbone.5': True}


def test_layers_with_branches_move_out_once_their_weights_are_there(tmp_path):
    """In an OREPA network the training goes on from what a checkpoint has loaded into its branches."""
    inside = run(tmp_path / 'inside', 1, hook=NONE, inside=True, custom_hooks=[dict(type='EMAHook')])
    optimizer = dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)))
    loaded = optimizer | dict(load_from=last_checkpoint(tmp_path / 'inside'))
    moved = run(tmp_path / 'moved', 2, inside=True, **loaded)
    reference = run(tmp_path / 'reference', 2, hook=NONE, inside=True, **loaded)
    assert branches_inside(inside) and not branches_inside(moved)
    assert apart(reference.model, moved.model) < 1e-5 and apart(average_of(reference), average_of(moved)) < 1e-5
    parts = run(tmp_path / 'parts', 3, inside=True, **loaded)
    resumed = run(tmp_path / 'parts', 4, inside=True, resume=True, **optimizer)
    whole = run(tmp_path / 'whole', 4, inside=True, **loaded)
    assert not branches_inside(parts) and same(resumed.model, whole.model)


def test_a_run_of_branches_in_the_model_resumes_beside_the_optimizer(tmp_path):
    """Its checkpoint has branches in the model and their momenta in the optimizer; both move out."""
    run(tmp_path / 'run', 3, hook=NONE, inside=True, custom_hooks=[])
    whole = run(tmp_path / 'whole', 4, hook=NONE, inside=True, custom_hooks=[])
    resumed = run(tmp_path / 'run', 4, inside=True, custom_hooks=[], resume=True)
    assert not branches_inside(resumed) and apart(whole.model, resumed.model) < 1e-5


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class TwoOptimizers:
    """One for the backbone, one for the head, as for a generator and a discriminator."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None) -> None:
        pass

    def __call__(self, model) -> OptimWrapperDict:
        parts = {name: torch.optim.SGD(getattr(model, name).parameters(), lr=0.01, momentum=0.9) for name in ('backbone', 'head')}
        return OptimWrapperDict(**{name: OptimWrapper(optimizer) for name, optimizer in parts.items()})


def test_several_optimizers():
    """Each has the branches of its own weights, and those that hold none of them stay as they are."""
    for options, counts in ({}, [3, 1]), (dict(pattern='head'), [1]):
        model = SmallPlain()
        wrappers = TwoOptimizers(None)(model)
        hook = BranchesHook(**options)
        state = torch.get_rng_state()
        hook.before_train(SimpleNamespace(model=model, optim_wrapper=wrappers, cfg={}, seed=0, hooks=[], logger=logging.getLogger()))
        assert [len(attached.updates) for attached in hook.attached] == counts
        assert torch.equal(state, torch.get_rng_state())  # a plain run draws the same numbers
    assert attached_to(wrappers['backbone'].optimizer) is None


def test_what_cannot_be_trained_this_way_ends_before_the_first_step(tmp_path):
    paramwise = dict(optimizer=dict(type='SGD', lr=0.01, weight_decay=0.1), paramwise_cfg=dict(custom_l2=True))
    with pytest.raises(BranchesError, match='custom_l2'):
        run(tmp_path, 1, optim_wrapper=paramwise | dict(constructor='OREPAOptimWrapperConstructor'), inside=True)
    with pytest.raises(ValueError, match='nothing to expand'):
        run(tmp_path, 1, FULL | dict(pattern='neck'))


def test_flexible_runner(tmp_path):
    """It loads before before_run."""

    def flexible(name: str, epochs: int, resume: bool = False) -> FlexibleRunner:
        changes = dict(strategy=dict(type='SingleDeviceStrategy'), default_hooks=dict(branches=FULL), launcher='none')
        optimizer = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
        changes |= dict(custom_hooks=[], resume=resume, optim_wrapper=optimizer, param_scheduler=None, env_cfg={})
        runner = built(dict(type='SmallPlain'), dict(type='SeedHook'), tmp_path / name, epochs, **changes)
        runner.train()
        return runner

    whole = flexible('whole', 3)
    flexible('parts', 2)
    resumed = flexible('parts', 3, resume=True)
    assert same(whole.model, resumed.model) and hook_of(resumed).attached


def test_branches_are_drawn_and_written_from_the_checkpoint(tools, mini_data, tmp_path):
    """Of a run with branches beside the optimizer: the training form's outputs are the checkpoint's."""
    config = tmp_path / 'config.py'
    stock = "dict(_delete_=True, type='ResNet', depth=18, stem_channels=32, base_channels=16)"
    config.write_text(
        f"_base_ = '{ROOT / tools.CONFIGS['imagenet']}'\nmodel = dict(backbone={stock})\ncustom_hooks = []\n"
        "default_hooks = dict(branches=dict(type='BranchesHook', pattern='backbone'))\n"
    )
    done(tools.run('tools/train', config, '--work-dir', tmp_path / 'run', options=tools.options('imagenet')))
    path, out = tmp_path / 'run' / 'last.pth', tmp_path / 'branches.png'
    done(tools.run('tools/analysis_tools/plot_branches', config, path, out))
    assert out.stat().st_size > 10_000
    checkpoint = read_checkpoint(path)
    plain = load_model(Config.fromfile(config), path)
    form = expand_as(build_model(Config.fromfile(config)), checkpoint)
    form.load_state_dict(training_form(checkpoint))
    x = torch.randn(2, 3, 64, 64)
    assert sum(isinstance(module, OREPAConv2d) for module in form.modules()) == len(branches_beside(checkpoint)) == 20
    difference = (form.eval()(x) - plain(x)).abs().max()
    assert difference < 1e-4 * plain(x).abs().max()
