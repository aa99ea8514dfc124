"""Branches beside the optimizer train as branches in the model do, and the model stays the plain network."""

import copy
import io
import os
from functools import partial

import pytest
import torch
from conftest import free_port, fused, loss_scaler, needs_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from orepa_mm import OREPAConv2d, attach_branches, expand, reparameterize
from orepa_mm.errors import BranchesError, ExpandError, FuseError
from orepa_mm.functional import BRANCHES
from orepa_mm.layers import METHODS
from orepa_mm.layers.kernels import OREPAKernel, pull_back_by_autograd
from orepa_mm.optim import attached_to

EXACT = 1e-10  # of the largest weight, in float64: rounding of 50 steps

OPTIMIZERS = dict(
    sgd=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    nesterov=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    dampened=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.5, weight_decay=1e-3),
    maximize=lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, maximize=True),
    sgd_fused=lambda p: fused(torch.optim.SGD, p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    sgd_foreach=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, foreach=True),
    adam=lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2),
    adam_fused=lambda p: fused(torch.optim.Adam, p, lr=1e-3),
    adamw=lambda p: torch.optim.AdamW(p, lr=1e-3),
    adamw_foreach=lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    rmsprop=lambda p: torch.optim.RMSprop(p, lr=1e-3),
    nadam=lambda p: torch.optim.NAdam(p, lr=1e-3),
)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1, groups=2),
        nn.Tanh(),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(6, 4, 5, padding=2),
    ).to(dtype)


def batches(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 10, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - 0.3).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[torch.Tensor], scheduler=None) -> None:
    for x in data:
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def apart(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of two models' parameters in plain form, relative to each one's largest element."""
    a, b = (dict(reparameterize(copy.deepcopy(model).eval()).named_parameters()) for model in (a, b))
    assert a.keys() == b.keys()
    return max(((a[name] - b[name]).abs().max() / a[name].abs().max()).item() for name in a)


def both(model: nn.Module, optimizer_of, scales: str = 'learned', **options):
    """The network with branches in it and the plain one with branches beside its optimizer, from the same seed."""
    inside, beside = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    expand(inside, **options)
    with torch.no_grad():  # as squeezed, so that they do not start a rounding apart, which Adam makes larger
        for plain, squeezed in zip(beside.parameters(), reparameterize(copy.deepcopy(inside).eval()).parameters(), strict=True):
            plain.copy_(squeezed)
    if scales == 'fixed':
        for name, parameter in inside.named_parameters():
            parameter.requires_grad_(not name.endswith('scale'))
    optimizers = optimizer_of(inside.parameters()), optimizer_of(beside.parameters())
    torch.manual_seed(1)
    handle = attach_branches(beside, optimizers[1], scales=scales, **options)
    return inside, beside, *optimizers, handle


def same_training(pair: tuple, data: list[torch.Tensor], allowed: float = EXACT) -> bool:
    """Whether what :func:`both` gives computes the same weights from the same data."""
    inside, beside, one, other, *_ = pair
    train(inside, one, data)
    train(beside, other, data)
    return apart(inside, beside) < allowed


def alike(optimizer_of, dtype: torch.dtype = torch.float32, **options):
    """Two networks and their optimizers with the same branches attached."""
    models = network(dtype), network(dtype)
    optimizers = [optimizer_of(model.parameters()) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(1)
        attach_branches(model, optimizer, **options)
    return *models, *optimizers


# The same training as with branches in the model


@pytest.mark.parametrize('name, start', [*((name, 'balanced') for name in OPTIMIZERS), ('nesterov', 'shared'), ('adamw', 'zeros')])
def test_fifty_steps_are_those_of_branches_in_the_model(name, start):
    inside, beside, one, other, _ = both(network(), OPTIMIZERS[name], start=start)
    before = copy.deepcopy(beside)
    schedulers = [torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 40]) for optimizer in (one, other)]
    train(inside, one, batches(50), schedulers[0])
    train(beside, other, batches(50), schedulers[1])
    assert apart(before, beside) > 1e-3
    assert apart(inside, beside) < EXACT


@st.composite
def networks(draw) -> tuple[nn.Module, torch.Tensor]:
    blocks, channels = [], draw(st.integers(1, 3)) * 2
    first = channels
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from((1, 1, 2, channels)))
        size = draw(st.sampled_from((1, 3, 3, 5)))
        out = groups * draw(st.integers(1, 3)) * (1 if groups % 2 == 0 else 2)
        blocks += [nn.Conv2d(channels, out, size, draw(st.integers(1, 2)), size // 2, groups=groups, bias=draw(st.booleans())), nn.Tanh()]
        channels = out
    model = nn.Sequential(*blocks).double()
    memory_format = draw(st.sampled_from((torch.contiguous_format, torch.channels_last)))
    return model.to(memory_format=memory_format), torch.randn(2, first, 7, 6, dtype=torch.float64)


@settings(max_examples=settings.default.max_examples // 8)
@given(
    networks(),
    st.sampled_from([name for name in OPTIMIZERS if 'fused' not in name or torch.__version__ >= '2.4']),
    st.sampled_from(('balanced', 'zeros', 'shared')),
    st.one_of(st.just('full'), st.just('light'), st.lists(st.sampled_from(BRANCHES), max_size=4).map(lambda names: ('origin', *names))),
    st.sampled_from(('learned', 'fixed')),
)
def test_any_network(drawn, name, start, branches, scales):
    model, x = drawn
    pair = both(model, OPTIMIZERS[name], start=start, branches=branches, scales=scales)
    # A gradient that is nothing but rounding is as large a step to Adam and its kin as any other.
    assert same_training(pair, [x] * 50, EXACT if isinstance(pair[-2], torch.optim.SGD) else 1e-7)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'channels_last'])
def test_the_backward_pass_by_itself(memory_format):
    for kernel in (
        OREPAKernel(8, 6, 3, groups=2, dtype=torch.float64),
        OREPAKernel(8, 6, 5, branches='light', dtype=torch.float64),
        OREPAKernel(8, 6, 1, groups=2, dtype=torch.float64),
        OREPAKernel(8, 6, 1, branches='light', dtype=torch.float64),
    ):
        for parameter in kernel.parameters():
            nn.init.normal_(parameter)
        grad = torch.randn_like(kernel()).contiguous(memory_format=memory_format)
        found = kernel.pull_back(grad)
        kernel.closed_form = False
        expected = pull_back_by_autograd(kernel, grad)
        assert found.keys() == expected.keys() == dict(kernel.named_parameters()).keys()
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= EXACT * value.abs().max(), name


def test_every_linear_method_attaches():
    for method, layer in METHODS.items():
        if layer.brings_norm:
            model = network()
            with pytest.raises(ExpandError, match='norms'):
                attach_branches(model, torch.optim.SGD(model.parameters(), 0.1), method=method)
        else:
            assert same_training(both(network(), OPTIMIZERS['sgd'], method=method), batches(10)), method


# What the model and the optimizer look like


def test_the_model_is_untouched():
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    before = {name: (id(module), len(module._forward_hooks)) for name, module in model.named_modules()}
    parameters, values = {name: id(p) for name, p in model.named_parameters()}, copy.deepcopy(model.state_dict())
    optimizer = OPTIMIZERS['adamw'](model.parameters())
    groups = [list(group['params']) for group in optimizer.param_groups]
    attach_branches(model, optimizer)
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    train(model, optimizer, batches(2))
    assert before == {name: (id(module), len(module._forward_hooks)) for name, module in model.named_modules()}
    assert parameters == {name: id(p) for name, p in model.named_parameters()}
    assert all(
        a is b for found, group in zip(groups, optimizer.param_groups, strict=True) for a, b in zip(found, group['params'], strict=True)
    )


def test_groups_hold_for_the_branches_of_their_weights():
    """Learning rates and weight decay by weight, and a group that is added later."""

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        first = [p for name, p in model.named_parameters() if name.startswith('0.')]
        last = [p for name, p in model.named_parameters() if name.startswith('6.') and name != '6.bias']
        rest = [p for name, p in model.named_parameters() if name[0] not in '06']
        optimizer = torch.optim.SGD([dict(params=first, lr=0.3), dict(params=rest, weight_decay=0.1)], lr=0.01, momentum=0.9)
        optimizer.add_param_group(dict(params=last, lr=0.0, weight_decay=0.1))
        return optimizer

    inside, beside = network(), network()
    torch.manual_seed(1)
    expand(inside)
    one, other = optimizer_of(inside), optimizer_of(beside)
    torch.manual_seed(1)
    attach_branches(beside, other)
    assert same_training((inside, beside, one, other), batches(20))
    assert apart(network()[6:], beside[6:]) < EXACT < apart(network()[:1], beside[:1])


def test_what_is_chosen_is_what_expand_chooses():
    for options in (dict(kernel_sizes=(3,)), dict(pattern='^3$'), dict(where=lambda path, conv: conv.groups == 1), dict(first_layer=False)):
        model = network()
        handle = attach_branches(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
        expanded = expand(network(), **options)
        assert [update.path for update in handle.updates] == [n for n, m in expanded.named_modules() if isinstance(m, OREPAConv2d)]


def test_frozen_weights_and_those_without_a_gradient_are_left_alone():
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    handle = attach_branches(model, optimizer)
    assert [update.path for update in handle.updates] == ['3', '5', '6']
    before = copy.deepcopy(model.state_dict())
    model[:5](batches(1)[0]).sum().backward()
    optimizer.step()
    assert torch.equal(model[5].weight, before['5.weight']) and not torch.equal(model[3].weight, before['3.weight'])


def test_a_shared_weight_has_one_set_of_branches():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1).double()
    model = nn.Sequential(nn.Conv2d(3, 4, 1).double(), conv, nn.Tanh(), conv, nn.Conv2d(4, 4, 3, dtype=torch.float64))
    pair = both(model, OPTIMIZERS['nesterov'])
    assert [update.path for update in pair[-1].updates] == ['0', '1', '4'] and same_training(pair, batches(20))
    model[4].weight = conv.weight  # tied: two modules, one weight
    assert len(attach_branches(model, torch.optim.SGD(model.parameters(), lr=0.1)).updates) == 2


def test_half_precision_weights_have_float32_masters():
    model = network(torch.bfloat16)
    model[1] = nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    handle = attach_branches(model, optimizer)
    before = model[0].weight.detach().clone()
    kernel = handle.updates[0].kernel
    assert all(p.dtype == torch.float32 for p in kernel.parameters())
    for _ in range(40):
        optimizer.zero_grad()
        model(batches(1, dtype=torch.bfloat16)[0]).sum().backward()
        model[0].weight.grad = torch.ones_like(before)
        optimizer.step()
    assert model[0].weight.dtype == torch.bfloat16 and torch.equal(model[0].weight, kernel().bfloat16())
    # 40 steps of 1e-4 each are too short for bfloat16 where weights are near 0.1, and add up in float32.
    assert (before - model[0].weight).mean() > 2e-3


# Loops


def test_accumulated_gradients():
    inside, beside, one, other, _ = both(network(), OPTIMIZERS['adamw'])
    for model, optimizer in ((inside, one), (beside, other)):
        for step in range(10):
            optimizer.zero_grad()
            for x in batches(4, seed=step):
                (loss_of(model, x) / 4).backward()
            optimizer.step()
    assert apart(inside, beside) < 1e-7  # sums of four gradients in another order, in Adam


def test_clipping_acts_on_the_plain_gradient():
    """By value: the branches' step is the one of the clipped gradient of the kernel."""
    plain, beside = network(), network()
    optimizer = torch.optim.SGD(beside.parameters(), lr=0.5)
    attach_branches(beside, optimizer, branches=('origin',), scales='fixed')
    x, limit = batches(1)[0], 1e-3
    loss_of(plain, x).backward()
    torch.nn.utils.clip_grad_value_(plain.parameters(), limit)
    loss_of(beside, x).backward()
    torch.nn.utils.clip_grad_value_(beside.parameters(), limit)
    optimizer.step()
    for layer, before in ((beside[3], plain[3]), (beside[6], plain[6])):
        assert (before.weight.grad.abs() == limit).any()
        expected = before.weight - 0.5 * 0.8**2 * before.weight.grad  # the plain branch's scale, twice
        assert (layer.weight - expected).abs().max() < EXACT
        assert torch.equal(layer.weight.grad, before.weight.grad)


@pytest.mark.parametrize('sgd', [torch.optim.SGD, partial(fused, torch.optim.SGD)], ids=['loop', 'fused'])
@pytest.mark.parametrize('scales', ['learned', 'fixed'])
def test_a_loss_scaler_and_a_step_it_skips(sgd, scales):
    model, reference, optimizer, plain = alike(partial(sgd, lr=0.1, momentum=0.9), branches='light', scales=scales)
    scaler = loss_scaler(init_scale=1024.0)
    for step, x in enumerate(batches(6, dtype=torch.float32)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x)).backward()
        if step in (1, 3):  # torch's fused SGD leaves a momentum without values where it skips its first step
            model[3].weight.grad[0] = float('inf')
            before, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()['branches'])
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step in (1, 3):
            assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
            now = optimizer.state_dict()['branches']
            assert all(torch.equal(value, now[path][name]) for path in saved for name, value in saved[path].items())
            with torch.no_grad():  # the norms' statistics
                reference(x)
        else:
            train(reference, plain, [x])
    assert apart(model, reference) < 1e-5


@pytest.mark.parametrize('unscale', [False, True])
def test_a_fused_optimizer_unscales_and_skips_inside_its_step(unscale):
    """Gradients reach its step scaled, and so do the branches'."""
    model, reference, optimizer, plain = alike(OPTIMIZERS['adam_fused'])
    scaler = loss_scaler(init_scale=1024.0)
    for step, x in enumerate(batches(4, dtype=torch.float32)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x)).backward()
        before = copy.deepcopy(model.state_dict())
        if step == 0:
            model[3].weight.grad[0] = float('nan')
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == 0:
            assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
            with torch.no_grad():
                reference(x)
        else:
            train(reference, plain, [x])
    assert apart(model, reference) < 1e-4  # a rounding apart, in Adam


def test_closures_are_evaluated_once():
    inside, beside, one, other, _ = both(network(), OPTIMIZERS['nesterov'])
    train(inside, one, batches(10))
    for position in (False, True):
        for x in batches(10)[5 * position : 5 * position + 5]:

            def closure(x=x):
                other.zero_grad()
                loss = loss_of(beside, x)
                loss.backward()
                return loss

            assert torch.is_tensor(other.step(closure) if position else other.step(closure=closure))
    assert apart(inside, beside) < EXACT


def test_compiled_it_is_the_plain_network():
    """No graph break and no recompilation in training."""
    from torch._dynamo.testing import CompileCounter  # seconds to import

    torch._dynamo.reset()
    counter = CompileCounter()
    model = network(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    handle = attach_branches(compiled, optimizer)
    assert [update.path for update in handle.updates] == ['0', '3', '5', '6']  # without the wrapper's prefix
    before = copy.deepcopy(handle.updates[0].values())
    train(compiled, optimizer, batches(4, dtype=torch.float32))
    assert counter.frame_count == 1
    assert all(not torch.equal(value, before[name]) for name, value in handle.updates[0].values().items())


def test_forward_and_backward_pass_are_the_plain_networks_operations():
    """What is added is added at the step; counted by the profiler, as kernel launches would be on a GPU."""

    def operations(model: nn.Module) -> dict[str, int]:
        x = batches(1, dtype=torch.float32)[0]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            loss_of(model, x).backward()
        return {event.key: event.count for event in profile.key_averages() if event.key.startswith('aten::')}

    plain, beside = network(torch.float32), network(torch.float32)
    optimizer = torch.optim.SGD(beside.parameters(), lr=0.1)
    attach_branches(beside, optimizer)
    train(beside, optimizer, batches(2, dtype=torch.float32))
    optimizer.zero_grad()
    operations(network(torch.float32))  # what the profiler sees of the first is not always all
    found = operations(beside)
    assert found == operations(plain) and sum(found.values()) > 50
    assert sum(operations(expand(plain)).values()) > sum(found.values())


# Weights that somebody else writes


@pytest.mark.parametrize('how', ['load_state_dict', 'copy_', 'data', 'mul_'])
def test_weights_changed_from_outside_are_noticed(how, caplog):
    """The step starts from the weight as it is, and its branches from no momentum; untouched ones go on."""
    caplog.set_level('INFO')
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = attach_branches(model, optimizer, branches='light')
    train(model, optimizer, batches(3))
    weight = model[3].weight
    target = weight.detach() * 2
    if how == 'load_state_dict':
        model.load_state_dict(dict(model.state_dict(), **{'3.weight': target}))
    elif how == 'copy_':
        with torch.no_grad():
            weight.copy_(target)
    elif how == 'mul_':
        with torch.no_grad():
            weight.mul_(2)
    else:
        weight.data = target.clone()
    other.load_state_dict(model.state_dict())
    fresh = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    attach_branches(other, fresh, branches='light')  # which have nothing drawn in them
    untouched = handle.updates[0].kernel.origin
    momentum = optimizer.state[untouched]['momentum_buffer'].clone()
    x = batches(1, seed=5)
    train(model, optimizer, x)
    train(other, fresh, x)
    found = [record.getMessage() for record in caplog.records if 'made anew' in record.getMessage()]
    assert found == ['The branches of 1 of 4 weights were made anew from the weights as they are.']
    assert (model[3].weight - other[3].weight).abs().max() < EXACT
    assert not torch.equal(momentum, optimizer.state[untouched]['momentum_buffer'])


def test_what_is_written_to_data_takes_a_call():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    handle = attach_branches(model, optimizer)
    model[3].weight.data.mul_(2)  # before the first step it is seen: loaders write like this
    expected = model[3].weight.detach().clone()
    train(model, optimizer, batches(2))
    assert (model[3].weight - expected).abs().max() < 1e-4
    model[3].weight.data.mul_(2)
    handle.renew()
    expected = model[3].weight.detach().clone()
    train(model, optimizer, batches(1))
    assert (model[3].weight - expected).abs().max() < 1e-4


def test_weights_that_come_back_have_not_changed(caplog):
    """As an average of weights that is swapped in for a validation and out again."""
    caplog.set_level('INFO')
    model, reference, *_ = pair = alike(OPTIMIZERS['sgd'], torch.float64)
    assert same_training(pair, batches(3))
    mine = copy.deepcopy(model.state_dict())
    model.load_state_dict(network().state_dict())
    model.load_state_dict(mine)
    assert same_training(pair, batches(3, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    assert not any('anew' in record.getMessage() for record in caplog.records)


def test_making_branches_anew_draws_nothing_from_the_generator():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach_branches(model, optimizer, start='zeros')
    before = torch.get_rng_state()
    handle.renew()
    drawn = handle.updates[0].kernel.depthwise.detach().clone()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    handle.renew()
    assert torch.equal(drawn, handle.updates[0].kernel.depthwise)


# State dicts


@pytest.mark.parametrize(
    'options', [dict(), dict(branches='light', scales='fixed'), dict(scales='fixed'), dict(method='ExpandNet')], ids=str
)
@pytest.mark.parametrize('name', ['nesterov', 'adamw', 'adam_fused'])
@pytest.mark.parametrize('weights_first', [True, False])
def test_a_resumed_run_is_the_undisturbed_one(name, options, weights_first):
    def start():
        model = network(torch.float32)
        optimizer = OPTIMIZERS[name](model.parameters())
        return model, optimizer, attach_branches(model, optimizer, **options)

    model, optimizer, _ = start()
    train(model, optimizer, batches(5, dtype=torch.float32))
    file = io.BytesIO()
    torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict()), file)
    train(model, optimizer, batches(5, 1, torch.float32))
    torch.manual_seed(99)
    resumed, again, _ = start()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for part, target in [('model', resumed), ('optimizer', again)][:: 1 if weights_first else -1]:
        target.load_state_dict(saved[part])
    train(resumed, again, batches(5, 1, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_state_dict_without_branches_starts_them_from_the_weights():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, batches(3))
    saved = copy.deepcopy(optimizer.state_dict())
    attach_branches(model, optimizer)
    train(model, optimizer, batches(1))
    weight = model[3].weight.detach().clone()
    optimizer.load_state_dict(saved)
    assert attached_to(optimizer) is not None
    for group in optimizer.param_groups:
        group['lr'] = 1e-8
    train(model, optimizer, batches(1))
    assert (model[3].weight - weight).abs().max() < 1e-6
    assert optimizer.state_dict()['branches'].keys() == {'0', '3', '5', '6'}


def test_a_state_dict_with_branches_does_not_load_without_them():
    model = network()
    for options in (dict(), dict(branches='light', scales='fixed')):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach_branches(model, optimizer, **options)
        saved = optimizer.state_dict()
        with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
            torch.optim.SGD(model.parameters(), lr=0.1).load_state_dict(saved)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(branches='light'), 'has the branches'),
        (dict(kernel_sizes=(3,)), 'in only one'),
        (dict(method='ExpandNet'), 'has the branches'),
    ],
    ids=str,
)
def test_a_state_dict_of_other_branches_is_refused(change, message):
    model = network()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for _ in range(2)]
    attach_branches(model, optimizers[0])
    handle = attach_branches(model, optimizers[1], **change)
    groups = [list(group['params']) for group in optimizers[1].param_groups]
    before = copy.deepcopy([update.values() for update in handle.updates])
    with pytest.raises(BranchesError, match=message):
        optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert all(
        a is b for found, group in zip(groups, optimizers[1].param_groups, strict=True) for a, b in zip(found, group['params'], strict=True)
    )
    after = [update.values() for update in handle.updates]
    assert all(torch.equal(value, b[name]) for a, b in zip(before, after, strict=True) for name, value in a.items())


# Pruning, and branches in the model


def test_pruning_keeps_weights_and_momentum_and_resumes():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = attach_branches(model, optimizer)
    train(model, optimizer, batches(5))
    kernel = handle.updates[0].kernel
    momentum = optimizer.state[kernel.origin]['momentum_buffer']
    handle.prune(0.05)
    assert len(kernel.branches) < 6 and optimizer.state[kernel.origin]['momentum_buffer'] is momentum
    assert optimizer.state[kernel.scale]['momentum_buffer'].shape == kernel.scale.shape
    assert (kernel() - model[0].weight).abs().max() < EXACT
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, batches(5, 1))
    resumed = network()
    again = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9)
    other = attach_branches(resumed, again)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert other.updates[0].kernel.branches == kernel.branches
    train(resumed, again, batches(5, 1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_state_dict_of_other_groups_leaves_pruned_and_unpruned_branches_alone():
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach_branches(model, optimizer)
    pruned = torch.optim.SGD(list(other.parameters())[:-1], lr=0.1)  # one bias less
    assert any(attach_branches(other, pruned).prune(0.1).values())
    kernels = [update.kernel for update in handle.updates]
    with pytest.raises(BranchesError, match='parameters in its groups'):
        optimizer.load_state_dict(pruned.state_dict())
    assert all(update.kernel is kernel for update, kernel in zip(handle.updates, kernels, strict=True))
    train(model, optimizer, batches(1))


@pytest.mark.parametrize('name', ['nesterov', 'adamw'])
def test_into_the_model_and_out_again_with_the_optimizers_states(name):
    inside, model, one, optimizer, handle = both(network(), OPTIMIZERS[name], start='shared')
    train(inside, one, batches(5))
    train(model, optimizer, batches(5))
    handle.move_into_model()
    assert isinstance(model[3], OREPAConv2d) and attached_to(optimizer) is None
    assert set(map(id, model.parameters())) == {id(p) for group in optimizer.param_groups for p in group['params']}
    train(inside, one, batches(5, 1))
    train(model, optimizer, batches(5, 1))
    bias = model[3].bias
    optimizer.zero_grad()
    attach_branches(model, optimizer)
    assert type(model[3]) is nn.Conv2d and model[3].bias is bias
    train(inside, one, batches(5, 2))
    train(model, optimizer, batches(5, 2))
    assert apart(inside, model) < EXACT


def test_a_deep_stem_moves_out_of_the_model():
    torch.manual_seed(0)
    inside = nn.Sequential(OREPAConv2d(3, 27, 7, padding=3), nn.Tanh(), OREPAConv2d(27, 4, 3), nn.Conv2d(4, 4, 1)).double()
    moved = copy.deepcopy(inside)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (inside, moved)]
    handle = attach_branches(moved, optimizers[1])
    assert [update.path for update in handle.updates] == ['0', '2']  # and the plain convolution stays plain
    assert not any(isinstance(module, OREPAConv2d) for module in moved.modules())
    assert same_training((inside, moved, *optimizers), batches(20))


def test_fixed_scales_take_the_momentum_of_branches_in_the_model():
    """Light branches that trained for a while go on with fixed scales, as the plain network."""
    torch.manual_seed(0)
    inside = expand(network(), branches='light')
    optimizer = torch.optim.SGD(inside.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    train(inside, optimizer, batches(5))
    moved = copy.deepcopy(inside)
    handed = torch.optim.SGD(moved.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    handed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    attach_branches(moved, handed, scales='fixed')
    for name, parameter in inside.named_parameters():
        if name.endswith('scale'):
            parameter.requires_grad_(False)
            parameter.grad = None
    assert same_training((inside, moved, optimizer, handed), batches(10, 1))


def test_the_training_form_is_a_copy():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach_branches(model, optimizer)
    train(model, optimizer, batches(2))
    form = handle.training_form()
    assert isinstance(form[0], OREPAConv2d) and type(model[0]) is nn.Conv2d
    x = batches(1)[0]
    assert (form.eval()(x) - model.eval()(x)).abs().max() < EXACT
    fresh = expand(network())
    fresh.load_state_dict(form.state_dict())
    assert apart(fresh, form) == 0
    before = copy.deepcopy(form.state_dict())
    train(model.train(), optimizer, batches(2))
    assert all(torch.equal(value, before[key]) for key, value in form.state_dict().items())


def test_detached_it_is_a_plain_optimizer():
    model, plain = network(), network()
    optimizer, stock = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, plain))
    attach_branches(model, optimizer).detach()
    train(model, optimizer, batches(3))
    train(plain, stock, batches(3))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert optimizer.state_dict().keys() == stock.state_dict().keys()


# Refusals


class Cached(torch.optim.SGD):
    """Steps what it was built with."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.cached = [p for group in self.param_groups for p in group['params']]

    def step(self, closure=None):
        with torch.no_grad():
            for p in self.cached:
                p.sub_(p.grad)


class Twice(torch.optim.SGD):
    def step(self, closure=None):
        closure()
        return closure()


def test_refusals():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for error, message, call in (
        (BranchesError, 'LBFGS evaluates its closure', lambda: attach_branches(model, torch.optim.LBFGS(model.parameters()))),
        (BranchesError, 'is no optimizer of torch', lambda: attach_branches(model, object())),
        (BranchesError, "scales='constant' is unknown", lambda: attach_branches(model, sgd, scales='constant')),
        (BranchesError, 'have no scales', lambda: attach_branches(model, sgd, scales='fixed', method='ExpandNet')),
        (ExpandError, "start='none' is unknown", lambda: attach_branches(model, sgd, start='none')),
        (ExpandError, 'nothing to expand', lambda: attach_branches(model, sgd, pattern='backbone')),
        (BranchesError, 'holds none', lambda: attach_branches(model, torch.optim.SGD(network().parameters(), 0.1))),
        (BranchesError, 'holds none', lambda: attach_branches(model.requires_grad_(False), sgd)),
        (BranchesError, 'a bare OREPAConv2d', lambda: attach_branches(OREPAConv2d(2, 2, 3), sgd)),
    ):
        with pytest.raises(error, match=message):
            call()
    model.requires_grad_()
    attach_branches(model, sgd)
    with pytest.raises(BranchesError, match='has branches already'):
        attach_branches(model, sgd)


def test_layers_that_the_optimizer_treats_differently_stay():
    model = expand(network())
    scales = [p for name, p in model.named_parameters() if name.endswith('scale')]
    others = [p for name, p in model.named_parameters() if not name.endswith('scale')]
    for optimizer in (torch.optim.SGD([dict(params=scales, lr=1.0), dict(params=others)], lr=0.1), torch.optim.SGD(others, lr=0.1)):
        groups = [list(group['params']) for group in optimizer.param_groups]
        with pytest.raises(BranchesError, match='treats them differently'):
            attach_branches(model, optimizer)
        assert isinstance(model[0], OREPAConv2d) and [len(g['params']) for g in optimizer.param_groups] == list(map(len, groups))


def test_what_is_refused_leaves_layers_in_the_model():
    frozen = expand(network()).requires_grad_(False)
    products = expand(network(), method='ExpandNet')
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (frozen, products)]
    with pytest.raises(BranchesError, match='holds none'):
        attach_branches(frozen, optimizers[0])
    with pytest.raises(BranchesError, match='have no scales'):
        attach_branches(products, optimizers[1], scales='fixed')
    assert isinstance(frozen[0], OREPAConv2d) and hasattr(products[0], 'kernel')
    assert all({id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]['params']}
               for model, optimizer in zip((frozen, products), optimizers, strict=True))  # fmt: skip


def test_optimizers_that_do_not_look_into_their_groups_are_found_out():
    model = network()
    optimizer = Cached(model.parameters(), lr=0.1)
    attach_branches(model, optimizer)
    with pytest.raises(BranchesError, match='Cached steps the weights it was built with'):
        train(model, optimizer, batches(1))
    model = network()
    optimizer = Twice(model.parameters(), lr=0.1)
    attach_branches(model, optimizer)

    def closure():
        loss = loss_of(model, batches(1)[0])
        loss.backward()
        return loss

    with pytest.raises(BranchesError, match='more than once'):
        optimizer.step(closure)
    # A step that raised leaves the weights in the groups for the next.
    optimizer.__class__ = torch.optim.SGD
    before = model[3].weight.detach().clone()
    train(model, optimizer, batches(1))
    assert not torch.equal(before, model[3].weight) and any(p is model[3].weight for p in optimizer.param_groups[0]['params'])


# Several processes


def _process(rank: int, port: str, folder: str, sent: bool) -> None:
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=str(rank), WORLD_SIZE='2')
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    model = network(torch.float32)
    ddp = nn.parallel.DistributedDataParallel(model)
    sizes = []

    def count(state, bucket):
        sizes.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    ddp.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(rank)  # what is drawn differs
    handle = attach_branches(ddp, optimizer)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(ddp, batches(1, 10 * step + rank, torch.float32)[0]).backward()
        optimizer.step()
        if step == 2:
            with torch.no_grad():
                model[3].weight.mul_(2)
    torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), sent=sizes), f'{folder}/{rank}.pth')
    assert handle.updates[0].path == '0'
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason='torch without distributed')
def test_two_processes_stay_bit_equal_and_send_what_the_plain_network_sends(tmp_path):
    torch.multiprocessing.spawn(_process, (free_port(), str(tmp_path), True), nprocs=2)
    a, b = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    kernels = {name: value for name, value in a['model'].items() if 'running' not in name}
    assert all(torch.equal(value, b['model'][name]) for name, value in kernels.items())
    for path, values in a['optimizer']['branches'].items():
        assert all(torch.equal(value, b['optimizer']['branches'][path][name]) for name, value in values.items())
    parameters = sum(p.numel() for p in network().parameters())
    assert a['sent'] == b['sent'] and sum(a['sent']) == 5 * parameters


def test_sharded_models_and_optimizers_are_refused(tmp_path):
    needs_torch('2.6', 'fully_shard')
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = network()
        zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
        with pytest.raises(BranchesError, match='is sharded'):
            attach_branches(model, zero)
        fully_shard(model)
        with pytest.raises(FuseError, match='sharded'):
            attach_branches(model, torch.optim.SGD(model.parameters(), lr=0.1))
    finally:
        torch.distributed.destroy_process_group()


def test_states_of_the_weights_themselves_are_refused():
    """As Lookahead keeps slow weights in the state of the optimizer that it wraps."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, batches(2))  # a momentum of before is dropped
    attach_branches(model, optimizer)
    train(model, optimizer, batches(2))
    optimizer.state[model[3].weight]['slow'] = model[3].weight.detach().clone()
    with pytest.raises(BranchesError, match='keeps a state of the weights'):
        train(model, optimizer, batches(1))
    train(model, optimizer, batches(1))


def test_gradients_that_are_pending_on_branches_in_the_model_are_not_lost():
    model = expand(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(BranchesError, match='pending'):
        attach_branches(model, optimizer)
    assert isinstance(model[0], OREPAConv2d)
    optimizer.zero_grad(set_to_none=False)
    attach_branches(model, optimizer)


def test_fixed_scales_of_light_branches_keep_no_branches():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach_branches(model, optimizer, branches='light', scales='fixed')
    train(model, optimizer, batches(2))
    kept = [p for update in handle.updates for p in update.kernel.parameters() if not p.is_meta]
    assert sum(p.numel() for p in kept) == sum(update.kernel.scale.numel() for update in handle.updates)
    form = handle.training_form().eval()
    assert isinstance(form[0], OREPAConv2d) and (form(batches(1)[0]) - model.eval()(batches(1)[0])).abs().max() < EXACT
    handle.move_into_model()
    train(model, optimizer, batches(2))
    assert isinstance(model[0], OREPAConv2d) and not any(p.is_meta for p in model.parameters())


# On a GPU


@pytest.fixture
def graphs(monkeypatch):
    """On a CPU, what a graph would do computed anew, into the same memory; in here the number of captures."""
    from orepa_mm.optim import steps
    from orepa_mm.optim.updates import BranchUpdate

    captured = []

    def capture(call, pool=None):
        results = call()
        captured.append(call)

        def replay():
            for result, found in zip(results, call(), strict=True):
                result.copy_(found)

        return results, replay, 'pool'

    monkeypatch.setattr(steps, 'capture', capture)
    monkeypatch.setattr(steps, 'warm_up', lambda call: call())
    monkeypatch.setattr(BranchUpdate, 'can_be_captured', property(lambda self: hasattr(self.kernel, 'pull_back')))
    return captured


@pytest.mark.parametrize('name', ['nesterov', 'adamw'])
def test_two_graphs_do_the_steps_of_all_weights(name, graphs):
    inside, beside, one, other, handle = pair = both(network(), OPTIMIZERS[name])
    assert same_training(pair, batches(10)) and len(graphs) == 2
    for model, optimizer in ((inside, one), (beside, other)):  # one weight has no gradient in this step
        optimizer.zero_grad()
        model[:6](batches(1)[0]).square().mean().backward()
        optimizer.step()
    assert apart(inside, beside) < EXACT and len(graphs) == 2
    assert any(handle.prune(0.1).values())  # other parameters in other memory
    train(beside, other, batches(2))
    assert len(graphs) == 4
    with torch.no_grad():
        beside[3].weight.mul_(2)
    before = beside[3].weight.detach().clone()
    for group in other.param_groups:
        group['lr'] = 0.0
    train(beside, other, batches(1))
    assert (beside[3].weight - before).abs().max() < EXACT and len(graphs) == 4


def test_a_loss_scaler_and_the_graphs_of_a_fused_optimizer(graphs):
    """It divides, or skips, inside its step; each weight ends that by itself."""
    model, reference, optimizer, plain = alike(partial(fused, torch.optim.SGD, lr=0.1))
    scaler = loss_scaler(init_scale=1024.0)
    for x in batches(3, dtype=torch.float32):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x)).backward()
        scaler.step(optimizer)
        scaler.update()
        train(reference, plain, [x])
    assert len(graphs) == 4  # two optimizers
    assert apart(model, reference) < 1e-5 and apart(network(torch.float32), model) > 1e-3


def test_where_no_graph_can_be_captured_weights_step_by_themselves(graphs, monkeypatch, caplog):
    from orepa_mm.optim import steps

    def fails(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(steps, 'capture', fails)
    assert same_training(both(network(), OPTIMIZERS['nesterov']), batches(3))
    assert [record.getMessage() for record in caplog.records if 'out of memory' in record.getMessage()] == [
        'Without a CUDA graph the branches of each weight step by themselves, which takes longer: out of memory.'
    ]


def test_weights_that_keep_moving_end_the_graphs(graphs, caplog):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach_branches(model, optimizer)
    for _ in range(8):
        for update in handle.updates:
            update.weight.data = update.weight.data.clone()
        train(model, optimizer, batches(1))
    assert len(graphs) == 10 and sum('replaced or moved' in record.getMessage() for record in caplog.records) == 1
