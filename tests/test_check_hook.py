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
