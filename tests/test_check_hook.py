"""A plain stem that was loaded as a product of kernels is warned of where it would move many times as far in a step."""

import re
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from small_runs import built
from torch import nn

from orepa_mm import OREPAConv2d, expand, reparameterize
from orepa_mm.engine.check_hook import CheckHook
from orepa_mm.errors import CheckpointError, UsageError


def network(scale: float = 0.13, **options) -> nn.Module:
    """A stem of the size of an ImageNet one, and other layers."""
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    nn.init.normal_(plain.weight, std=scale)
    return nn.ModuleDict(dict(conv1=OREPAConv2d.from_conv(plain, **options), layer=OREPAConv2d(64, 256, 3), head=nn.Conv2d(256, 2, 1)))


@MODELS.register_module()
class WithAStem(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = OREPAConv2d(3, 64, 7), nn.Conv2d(64, 256, 3)

    def forward(self, inputs, mode):
        return dict(loss=self.conv2(self.conv1(inputs)).square().mean())


def warnings(model: nn.Module, **rules) -> list[str]:
    cfg = dict(optimizer=dict(type='SGD', lr=0.02), paramwise_cfg=dict(custom_keys=rules), constructor='OREPAOptimWrapperConstructor')
    runner = SimpleNamespace(model=model, optim_wrapper=build_optim_wrapper(model, cfg), logger=Mock())
    CheckHook().before_train(runner)
    return [call.args[0] for call in runner.logger.warning.call_args_list]


@pytest.mark.parametrize('branches', ['full', 'light'])
def test_the_warning_says_how_far_a_step_goes(branches):
    model = network(branches=branches)
    (text,) = warnings(model)
    said = float(re.search(r'moves it (\d+) times as far', text)[1])
    stem, rate = model['conv1'].double(), 1e-7
    before, gradient = stem.kernel().detach(), torch.randn(64, 3, 7, 7, dtype=torch.float64)
    stem.kernel().backward(gradient)
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter -= rate * parameter.grad
    found = ((stem.kernel() - before).norm() / (rate * gradient).norm()).item()
    assert said == pytest.approx(found, rel=0.25) and said > 5  # of another random gradient
    assert text.startswith('conv1: ') and 'plain_stem=True' in text
    multiplier = float(re.search(r'lr_mult of about (\S+) ', text)[1])
    assert not warnings(network(branches=branches), conv1=dict(lr_mult=multiplier))


def test_no_warning_without_need():
    frozen = network()
    frozen['conv1'].requires_grad_(False)
    small, drawn, learned = network(scale=0.01), network(), network()
    drawn['conv1'] = OREPAConv2d(3, 64, 7)  # as published, from scratch
    with torch.no_grad():
        learned['conv1'].kernel.stages[0].origin += 0.01
    for model in (frozen, small, drawn, learned, nn.ModuleDict(dict(conv1=nn.Conv2d(3, 64, 7)))):
        assert not warnings(model)


@pytest.mark.parametrize('trained', ['plain', 'OREPA'])
def test_a_run_warns_once_its_weights_are_loaded(trained, tmp_path):
    model = WithAStem()
    if trained == 'plain':
        model.conv1 = nn.Conv2d(3, 64, 7)
        nn.init.normal_(model.conv1.weight, std=0.13)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'start.pth')
    changes = dict(custom_hooks=[dict(type='CheckHook')], load_from=str(tmp_path / 'start.pth'), log_level='WARNING')
    built(dict(type='WithAStem'), {}, tmp_path / 'run', 1, **changes).train()
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert ('conv1: a plain kernel was loaded as a product of 3' in log.read_text()) == (trained == 'plain')


@pytest.mark.parametrize(('rates', 'warned'), [((0.02, 0.02), True), ((0.02, 0.0), True), ((0.0, 0.02), False)])
def test_several_optimizers(rates, warned):
    model = network()
    parts = nn.ModuleList([model['conv1']]), nn.ModuleList([model['layer'], model['head']])
    wrappers = [OptimWrapper(torch.optim.SGD(part.parameters(), lr=rate)) for part, rate in zip(parts, rates, strict=True)]
    runner = SimpleNamespace(model=model, optim_wrapper=OptimWrapperDict(stem=wrappers[0], rest=wrappers[1]), logger=Mock())
    CheckHook().before_train(runner)
    assert runner.logger.warning.called == warned


def test_a_runner_without_a_config_refuses_what_cannot_be_resumed(tmp_path):
    checkpoint = built(dict(type='WithAStem'), {}, tmp_path / 'first', 1, custom_hooks=[dict(type='CheckHook')])
    checkpoint.train()
    plain = reparameterize(checkpoint.model.eval()).state_dict()
    whole = torch.load(tmp_path / 'first/epoch_1.pth', weights_only=False)
    for name, content in dict(plain=whole | dict(state_dict=plain), weights=dict(state_dict=whole['state_dict'])).items():
        torch.save(content, tmp_path / f'{name}.pth')
        changes = dict(custom_hooks=[dict(type='CheckHook')], load_from=str(tmp_path / f'{name}.pth'), resume=True)
        with pytest.raises(CheckpointError, match=rf'{name}\.pth: cannot be resumed'):
            built(WithAStem(), {}, tmp_path / name, 2, **changes).train()


@HOOKS.register_module()
class ChangesTheModel(Hook):
    def __init__(self, when: str) -> None:
        setattr(self, when, self.change)

    def change(self, runner) -> None:
        expand(runner.model)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ByName:
    """As YOLO trainers do: weights of plain layers and norms, and all biases."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        plain = [p for module in model.modules() for p in vars(module)['_parameters'].values() if isinstance(module, nn.Conv2d)]
        return OptimWrapper(torch.optim.SGD(plain, lr=0.01))


@pytest.mark.parametrize('how', ['before_train', 'before_train_epoch', 'ByName', 'frozen'])
def test_every_trainable_parameter_is_held_or_the_run_stops(how, tmp_path):
    options = dict(custom_hooks=[dict(type='CheckHook')])
    if how.startswith('before'):
        options['custom_hooks'].append(dict(type='ChangesTheModel', when=how))
    else:
        options['optim_wrapper'] = dict(constructor='ByName')
    runner = built(WithAStem(), {}, tmp_path / 'run', 1, **options)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    if how == 'frozen':  # of what is not to train, nothing is asked
        runner.model.conv1.requires_grad_(False)
        runner.train()
        assert not torch.equal(before['conv2.weight'], runner.model.conv2.weight)
        return
    with pytest.raises(UsageError, match=r'trainable parameters are in no optimizer'):
        runner.train()
    assert all(torch.equal(value, before[name]) for name, value in runner.model.named_parameters() if name in before)


@MODELS.register_module()
class Twins(BaseModel):
    def __init__(self, branches=('origin', 'avg', 'point')):
        super().__init__()
        self.conv1, self.conv2 = (OREPAConv2d(3, 3, 3, padding=1, branches=branches) for _ in range(2))

    def forward(self, inputs, mode):
        return dict(loss=self.conv2(self.conv1(inputs)).square().mean())


def twins(work_dir, epochs, keys=('conv1',), branches=('origin', 'avg', 'point'), hooks=({},), milestones=(2,), **optimizer):
    """A run, or the rest of one; the parameters of ``keys`` are a group of their own."""
    wrapper = dict(
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-3) | optimizer,
        constructor='OREPAOptimWrapperConstructor',
        paramwise_cfg=dict(custom_keys={key: dict(lr_mult=0.5) for key in keys}),
    )
    changes = dict(optim_wrapper=wrapper, param_scheduler=dict(type='MultiStepLR', milestones=list(milestones)), log_level='WARNING')
    hooks = [hook or dict(type='CheckHook') for hook in hooks]
    model = dict(type='Twins', branches=branches)
    runner = built(model, {}, work_dir, epochs, resume=epochs > 1, custom_hooks=hooks, **changes)
    runner.train()
    return runner


@pytest.mark.parametrize('named', [True, False])
@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ({}, dict(branches=('origin', 'avg', 'freq'))),  # as many, and as large
        ({}, dict(branches=('origin', 'avg'))),
        (dict(hooks=({}, dict(type='PruneBranchesHook', threshold=0.9, iteration=1))), {}),
        ({}, dict(keys=('conv2',))),  # as large a group
        ({}, dict(keys=('conv',))),
    ],
)
def test_an_optimizers_state_is_not_given_to_other_parameters(before, after, named, tmp_path):
    twins(tmp_path / 'run', 1, **before)
    if not named:  # of a run without CheckHook, or of an older one
        if 'keys' in after:
            return  # such a file cannot tell
        checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
        del checkpoint['meta']['names_in_optimizers']
        torch.save(checkpoint, tmp_path / 'run/epoch_1.pth')
    with pytest.raises(CheckpointError, match="cannot be resumed, because its optimizer's state is of other parameters"):
        twins(tmp_path / 'run', 2, **after)


@pytest.mark.parametrize('change', [dict(lr=0.02), dict(weight_decay=0.1, momentum=0.5), dict(milestones=(1,)), {}])
def test_settings_that_resuming_overrides_are_named(change, tmp_path):
    twins(tmp_path / 'run', 1)
    runner = twins(tmp_path / 'run', 3, **change)
    log = ''.join(path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    expected = {
        'lr': 'lr=0.01 and not 0.02',
        'weight_decay': 'weight_decay=0.001 and not 0.1',
        'momentum': 'momentum=0.9 and not 0.5',
        'milestones': 'milestones=',
    }
    for key, text in expected.items():
        assert (text in log) == (key in change), log
    assert runner.optim_wrapper.optimizer.param_groups[0]['momentum'] == 0.9
