"""Compiled squeezing: the same numbers, only where it pays, and training goes on without a compiler."""

import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn

from orepa_mm import OREPAConv2d, compile_squeezing
from orepa_mm.functional import compiled_squeeze
from orepa_mm.layers import compiled


@pytest.fixture(autouse=True)
def fresh():
    compiled_squeeze._compiled.cache_clear()
    yield
    compiled_squeeze._compiled.cache_clear()


def network(**kwargs) -> nn.Sequential:
    """Blocks of 8 output channels with a remainder, and 1x1."""
    net = nn.Sequential(OREPAConv2d(3, 20, 3, **kwargs), OREPAConv2d(20, 9, 1, **kwargs))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = net(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))]


def test_a_compiler_gives_the_same_numbers(monkeypatch):
    monkeypatch.setattr(compiled, '_seconds', lambda kernels: (2.0, 1.0))  # keep them, however fast they are here
    net = network(dtype=torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = gradients(net, x)
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    report = compile_squeezing(net)
    assert report.compiled and report.layers == 2 and report.difference < 1e-10, str(report)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())
    assert all(conv.kernel.compiled for conv in net)
    for actual, reference in zip(gradients(net, x), expected, strict=True):
        assert (actual - reference).abs().max() < 1e-10 * reference.abs().max()
    assert '2 kernels are squeezed by compiled passes' in str(report)


@pytest.mark.slow
@pytest.mark.parametrize('kwargs', [dict(groups=2), dict(kernel_size=5), dict(point_branch=False), dict(dtype=torch.float32)])
def test_a_compiler_gives_the_same_numbers_in_other_forms(kwargs):
    kwargs = dict(dict(kernel_size=3, dtype=torch.float64), **kwargs)
    report = compile_squeezing(nn.Sequential(OREPAConv2d(12, 24, **kwargs), OREPAConv2d(24, 40, **kwargs)))
    assert report.difference < (1e-10 if kwargs['dtype'] == torch.float64 else 1e-5), str(report)


def broken(*_, **__):
    raise RuntimeError('no compiler\nfound')


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(torch, 'compile', broken)
    net = network()
    report = compile_squeezing(net)
    assert not report.compiled and not any(conv.kernel.compiled for conv in net)
    assert str(report) == '2 kernels are squeezed without compiling: compiling failed (RuntimeError: no compiler).'
    net(torch.randn(1, 3, 8, 8)).sum().backward()


@pytest.mark.parametrize(('wrong', 'seconds', 'reason'), [(1.01, (2.0, 1.0), 'give other numbers'), (1.0, (1.0, 2.0), 'are not faster')])
def test_it_keeps_only_what_is_right_and_faster(wrong, seconds, reason, monkeypatch):
    right = compiled_squeeze._combine

    def combine(*args):
        return wrong * right(*args)

    monkeypatch.setattr(compiled_squeeze, '_combine', combine)
    monkeypatch.setattr(compiled_squeeze, '_compiled', lambda function: function)
    monkeypatch.setattr(compiled_squeeze._compiled, 'cache_clear', lambda: None, raising=False)
    monkeypatch.setattr(compiled, '_seconds', lambda kernels: seconds)
    net = network()
    report = compile_squeezing(net)
    assert not report.compiled and report.reason == reason and reason in str(report)
    assert not any(conv.kernel.compiled for conv in net)


def test_numbers_that_are_not_finite_are_not_the_same(monkeypatch):
    monkeypatch.setattr(compiled_squeeze, '_combine', lambda sequence, *_: sequence * float('nan'))
    monkeypatch.setattr(compiled_squeeze, '_compiled', lambda function: function)
    monkeypatch.setattr(compiled_squeeze._compiled, 'cache_clear', lambda: None, raising=False)
    monkeypatch.setattr(compiled, '_seconds', lambda kernels: (2.0, 1.0))
    assert compile_squeezing(network()).reason == 'give other numbers'


def test_a_model_without_orepa_layers():
    assert not compile_squeezing(nn.Conv2d(3, 4, 3)).compiled


@pytest.mark.parametrize(('min_iters', 'found'), [(0, True), (10**6, False)])
def test_the_hook_in_a_training(min_iters, found, tools, tmp_path, monkeypatch):
    """Trains on with whatever came out; the real compiler is left to the tests above."""
    monkeypatch.setattr(torch, 'compile', broken)
    status, error = tools.train('imagenet', tmp_path, options={'custom_hooks.1.min_iters': min_iters})
    assert status == 0, error
    log = next(tmp_path.rglob('*.log')).read_text()
    assert ('kernels are squeezed without compiling: compiling failed' in log) == found


def test_long_recipes_have_the_hook():
    for name in ('coco/mask-rcnn_orepa-r50_fpn_1x_coco', 'imagenet/orepa-resnet50_8xb256-rsb-a2-ema-amp-300e_in1k'):
        hooks = Config.fromfile(f'configs/{name}.py').custom_hooks
        assert dict(type='CompileSqueezingHook', min_iters=10000) in hooks
