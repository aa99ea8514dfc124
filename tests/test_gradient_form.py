"""Plain kernels in gradient form go where SGD takes linear branches whose scales are fixed."""

import copy
import itertools
import os

import pytest
import torch
from conftest import free_port
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from small_models import config
from small_runs import built, check_resuming, last_checkpoint, run
from torch import Tensor, nn

import orepa_mm
from orepa_mm import OREPAConv2d
from orepa_mm.checkpoints.checking import check_state_dict
from orepa_mm.deploy.loading import build_model
from orepa_mm.engine.gradient_form_hook import GradientFormHook
from orepa_mm.engine.optim_wrapper_constructor import OREPAOptimWrapperConstructor
from orepa_mm.errors import GradientFormError
from orepa_mm.functional import multiply_taps, with_multiplied_gradient
from orepa_mm.layers.gradient_form import GradientFormConv2d, GradientFormKernel
from orepa_mm.layers.kernels import OREPAKernel, OREPAPointwiseKernel
from orepa_mm.reparam.gradient_form import check_gradient_form, gradient_form_in, is_gradient_form

EXACT = 1e-10  # of the largest element, in float64: rounding of 50 steps


def network(dtype: torch.dtype = torch.float64, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Sequential:
    """Every kind of layer, with random scales and no branch at zero."""
    torch.manual_seed(0)
    options = dict(dtype=dtype, branches='light')
    model = nn.Sequential(
        OREPAConv2d(3, 6, 7, 2, 3, **options),
        nn.Tanh(),
        OREPAConv2d(6, 4, 3, 1, 1, groups=2, **options),
        nn.Tanh(),
        OREPAConv2d(4, 6, 5, 1, 2, bias=False, **options | dict(branches=('origin', 'freq', 'point'))),
        nn.Tanh(),
        OREPAConv2d(6, 4, 1, **options),
        OREPAConv2d(4, 4, 3, bias=False, **options | dict(branches=('avg', 'point'))),
    )
    for kernel in kernels(model):
        nn.init.uniform_(kernel.scale, 0.2, 0.9)
    return model.to(memory_format=memory_format)


def kernels(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, OREPAKernel | OREPAPointwiseKernel)]


def fix_scales(model: nn.Module) -> nn.Module:
    for kernel in kernels(model):
        kernel.scale.requires_grad_(False)
    return model


def squeezed(model: nn.Module) -> list[Tensor]:
    """All that decides the outputs: the kernels, those of a stem's stages one by one, and the biases."""
    values: list[Tensor] = []
    for layer in model:
        if not isinstance(layer, nn.Tanh):
            stages = [stage() for stage in layer.kernel.stages] if layer.kernel_size == (7, 7) else [layer.weight]
            values += [*stages, *([] if layer.bias is None else [layer.bias])]
    return [value.detach().clone() for value in values]


def apart(a: nn.Module, b: nn.Module) -> float:
    return max(((x - y).abs().max() / x.abs().max()).item() for x, y in zip(squeezed(a), squeezed(b), strict=True))


def batches(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(2, 3, 12, 10, dtype=dtype, generator=generator)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 0.3).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data, steps: int) -> None:
    for x in itertools.islice(data, steps):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **dict(lr=0.1) | options)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(momentum=0.9, weight_decay=1e-2),
        dict(momentum=0.9, nesterov=True, weight_decay=1e-2),
        dict(momentum=0.8, dampening=0.5, weight_decay=1e-3, maximize=True, lr=1e-3),
        dict(momentum=0.9, weight_decay=1e-2, fused=True),
    ],
    ids=str,
)
def test_fifty_steps_are_those_of_the_branches(options):
    branches, plain = fix_scales(network()), orepa_mm.gradient_form(network())
    assert apart(branches, plain) < EXACT
    before = squeezed(plain)
    train(branches, sgd(branches, **options), batches(), 50)
    train(plain, sgd(plain, **options), batches(), 50)
    assert min((x - y).abs().max().item() for x, y in zip(before, squeezed(plain), strict=True)) > 1e-4
    assert apart(branches, plain) < EXACT


def test_without_the_matrices_it_would_go_elsewhere():
    branches, plain = fix_scales(network()), network()
    orepa_mm.gradient_form(plain)
    for module in plain.modules():
        if hasattr(module, 'gradient_matrix'):
            module.gradient_matrix.copy_(torch.eye(module.gradient_matrix.shape[-1], dtype=torch.float64))
    train(branches, sgd(branches), batches(), 5)
    train(plain, sgd(plain), batches(), 5)
    assert apart(branches, plain) > 1e-3


@pytest.mark.parametrize('pending', [False, True])
def test_a_hand_over_in_training_takes_momentum_and_gradients_along(pending):
    """The scales train until then; branches whose scales stop there are what it goes on as."""
    options = dict(momentum=0.9, nesterov=True, weight_decay=1e-2)
    branches, data = network(), batches()
    optimizer = sgd(branches, **options)
    train(branches, optimizer, data, 10)
    optimizer.zero_grad()
    rest = list(itertools.islice(data, 21))
    if pending:
        loss_of(branches, rest[-1]).backward()
    plain = copy.deepcopy(branches)
    handed_over = sgd(plain, **options)
    handed_over.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for a, b in zip(branches.parameters(), plain.parameters(), strict=True):
        b.grad = None if a.grad is None else a.grad.clone()
    orepa_mm.gradient_form(plain, handed_over)
    fix_scales(branches)
    for model, each in ((branches, optimizer), (plain, handed_over)):
        for kernel in kernels(model):
            kernel.scale.grad = None
        if pending:
            each.step()
        train(model, each, iter(rest), 20)
    assert {id(p) for group in handed_over.param_groups for p in group['params']} == {id(p) for p in plain.parameters()}
    assert handed_over.state.keys() == set(plain.parameters())
    assert apart(branches, plain) < EXACT


def test_cost_parameters_and_outputs_are_the_plain_network_s():
    model, x = network().eval(), next(batches())
    expected, counts = model(x), [layer.weight.numel() for layer in model if not isinstance(layer, nn.Tanh)]
    assert orepa_mm.gradient_form(model) is model
    assert (model(x) - expected).abs().max() < EXACT * expected.abs().max()
    layers = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 4 and [layer.weight.numel() for layer in layers] == counts[1:]
    assert all([name for name, _ in layer.named_parameters()] in (['weight'], ['weight', 'bias']) for layer in layers)
    state = model.state_dict()
    deployed = orepa_mm.reparameterize(model)
    assert {type(layer) for layer in deployed} == {nn.Conv2d, nn.Tanh}
    assert (deployed(x) - expected).abs().max() < EXACT * expected.abs().max()
    assert {key for key in state if 'gradient_matrix' not in key} - deployed.state_dict().keys() == {
        f'0.kernel.stages.{i}.weight' for i in range(3)
    }
    assert not any('gradient_matrix' in key for key in deployed.state_dict())


@pytest.mark.parametrize('branches', ['light', 'full', ['origin']])
def test_a_checkpoint_loads_into_a_model_with_branches(branches):
    plain = orepa_mm.gradient_form(network())
    options = dict(dtype=torch.float64, branches=branches)
    model = nn.Sequential(OREPAConv2d(3, 6, 7, 2, 3, **options), nn.Tanh(), OREPAConv2d(6, 4, 3, 1, 1, groups=2, **options))
    expected = plain[:3]
    model.load_state_dict(expected.state_dict())
    assert apart(expected, model) < EXACT


def test_only_layers_with_branches_change_and_shared_ones_stay_shared():
    shared, stock = OREPAConv2d(4, 4, 3, 1, 1, branches='light'), nn.Conv2d(4, 4, 3)
    model = nn.ModuleDict(dict(a=shared, b=nn.Sequential(shared), stock=stock))
    calls: list[int] = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    shared.requires_grad_(False).eval()
    orepa_mm.gradient_form(model)
    assert model['a'] is model['b'][0] and type(model['a']) is GradientFormConv2d and model['stock'] is stock
    assert not model['a'].weight.requires_grad and not model['a'].training
    model['a'](torch.randn(1, 4, 5, 5))
    assert calls == [1]
    bare = orepa_mm.gradient_form(OREPAConv2d(4, 4, 3, branches='light'))
    assert type(bare) is GradientFormConv2d
    stem = OREPAConv2d(3, 6, 7, branches='light')
    assert orepa_mm.gradient_form(stem) is stem and all(type(stage) is GradientFormKernel for stage in stem.kernel.stages)


def test_a_model_and_its_state_dict_tell_the_form():
    model = nn.Sequential(network()[:1])  # a stem only
    assert not is_gradient_form(model) and not gradient_form_in(model.state_dict())
    orepa_mm.gradient_form(model)
    assert is_gradient_form(model) and gradient_form_in(model.state_dict())
    assert not gradient_form_in({'not_a_gradient_matrix': torch.ones(1), '0.gradient_matrix.more': torch.ones(1)})
    assert is_gradient_form(orepa_mm.gradient_form(OREPAConv2d(4, 4, 3, branches='light')))


@pytest.mark.parametrize('groups', [1, 2])
def test_two_optimizers_and_what_they_hold(groups):
    """A kernel takes the place of its first branch in the one that held it; all others keep what they have."""
    model = nn.Sequential(OREPAConv2d(4, 4, 3, branches='light'), nn.BatchNorm2d(4), OREPAConv2d(4, 4, 1, branches='light', bias=False))
    first, norm, second = (list(layer.parameters()) for layer in model)
    bias = model[0].bias
    optimizers = [sgd(nn.ParameterList(first + norm)), torch.optim.SGD([dict(params=second)], lr=0.1, momentum=0.5)]
    if groups == 2:
        optimizers[0] = torch.optim.SGD([dict(params=norm), dict(params=first)], lr=0.1)
    model[0].kernel.avg.grad = torch.ones_like(model[0].kernel.avg)  # of one branch only: the others' are zero
    whole = copy.deepcopy(model[0].kernel)
    orepa_mm.gradient_form(model, iter(optimizers))
    held = [[[id(p) for p in group['params']] for group in optimizer.param_groups] for optimizer in optimizers]
    mine = [id(p) for p in first if p is bias]
    expected = [id(model[0].weight), *mine] if first[0] is not bias else [*mine, id(model[0].weight)]
    norms = [id(p) for p in norm]
    assert held == [[expected + norms] if groups == 1 else [norms, expected], [[id(model[2].weight)]]]
    assert model[0].bias is bias and model[2].bias is None and model[2].weight.grad is None
    with torch.no_grad():  # what is linear: the kernel of the gradients
        for name in whole.branches:
            getattr(whole, name).fill_(1.0 if name == 'avg' else 0.0)
        assert (model[0].weight.grad - whole()).abs().max() < 1e-6


@pytest.mark.parametrize('frozen', [False, True])
def test_what_is_frozen_stays_frozen(frozen):
    model = network().requires_grad_(not frozen)
    orepa_mm.gradient_form(model)
    assert all(p.requires_grad is not frozen and p.is_leaf for p in model.parameters())


class TestTheGradient:
    """It is multiplied as soon as it is there, so all that handles gradients afterwards needs to know nothing."""

    def test_accumulation(self):
        plain = orepa_mm.gradient_form(network())
        x = torch.cat(list(itertools.islice(batches(), 2)))
        loss_of(plain, x).backward()
        whole = [p.grad.clone() for p in plain.parameters()]
        plain.zero_grad()
        wrapper = OptimWrapper(sgd(plain), accumulative_counts=2)
        wrapper.initialize_count_status(plain, 0, 4)
        for part in x.split(2):
            wrapper.backward(wrapper.scale_loss(loss_of(plain, part)))
        for p, expected in zip(plain.parameters(), whole, strict=True):
            assert (p.grad - expected).abs().max() < EXACT * expected.abs().max()

    @pytest.mark.parametrize('fused', [False, True])
    def test_scaled_losses(self, fused):
        """As AmpOptimWrapper takes its steps; a fused optimizer divides by the scale inside."""
        trained = []
        for enabled in (True, False):
            plain = orepa_mm.gradient_form(network(torch.float32))
            optimizer, scaler = sgd(plain, momentum=0.9, fused=fused), torch.amp.GradScaler('cpu', init_scale=2.0**12, enabled=enabled)
            for x in itertools.islice(batches(torch.float32), 3):
                optimizer.zero_grad()
                scaler.scale(loss_of(plain, x)).backward()
                scaler.step(optimizer)
                scaler.update()
            trained.append(plain)
        assert apart(*trained) < 1e-5  # float32; scaling by a power of two rounds nothing but what is tiny

    def test_autocast_leaves_it_in_float32(self):
        plain, x = orepa_mm.gradient_form(network(torch.float32)), next(batches(torch.float32))
        layer = plain[6]
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = loss_of(plain, x)
            loss.backward()
        assert layer.weight.grad.dtype == torch.float32
        g = torch.randn(8, 4, 3, 3)
        matrix = torch.randn(8, 9, 9)
        matrix = matrix + matrix.mT
        expected = multiply_taps(g, matrix)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(multiply_taps(g, matrix), expected)

    def test_clipping_sees_the_step_the_kernel_takes(self):
        """Not the plain gradient, nor the branches', whose norm squared is that of the plain gradient times the one it sees."""
        branches, stock = fix_scales(network()), orepa_mm.reparameterize(network().eval())
        model, x = orepa_mm.gradient_form(network()), next(batches())
        for each in (branches, stock, model):
            loss_of(each, x).backward()
        layer, moved, plain = branches[2], model[2].weight.grad, stock[2].weight.grad
        assert (moved - multiply_taps(plain, model[2].gradient_matrix)).abs().max() < EXACT * moved.abs().max()
        squared = sum(p.grad.square().sum() for p in layer.kernel.parameters() if p.grad is not None)
        assert abs(squared - (plain * moved).sum()) < EXACT * squared
        expected = moved.norm()
        norm = nn.utils.clip_grad_norm_([model[2].weight], 1e-3)
        assert abs(norm - expected) < EXACT * norm and abs(model[2].weight.grad.norm() - 1e-3) < 1e-8

    @pytest.mark.parametrize('way', ['channels_last', 'func'])
    def test_other_ways_to_compute_it(self, way):
        plain, x = orepa_mm.gradient_form(network()), next(batches())
        loss_of(plain, x).backward()
        expected = {name: p.grad for name, p in plain.named_parameters()}
        if way == 'channels_last':
            other = orepa_mm.gradient_form(network(memory_format=torch.channels_last))
            stages = list(other[0].kernel.stages)
            assert all(stage.weight.is_contiguous() for stage in plain[0].kernel.stages)
            assert all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in (other[2], other[4], other[7], *stages))
            loss_of(other, x.contiguous(memory_format=torch.channels_last)).backward()
            found = {name: p.grad for name, p in other.named_parameters()}
        else:
            parameters = {name: p.detach() for name, p in plain.named_parameters()}
            found = torch.func.grad(lambda p: (torch.func.functional_call(plain, p, (x,)) - 0.3).square().mean())(parameters)
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < EXACT * value.abs().max(), name

    @pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize('shape', [(6, 4, 3, 3), (6, 1, 3, 3), (6, 4, 1, 1)])
    def test_taps_of_each_channel(self, shape, memory_format):
        kernel, taps = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format), shape[2] * shape[3]
        matrix = torch.randn(6, taps, taps, dtype=torch.float64)
        matrix = matrix + matrix.mT
        expected = torch.einsum('opq,oiq->oip', matrix, kernel.flatten(2)).view(shape)
        assert (multiply_taps(kernel, matrix) - expected).abs().max() < EXACT

    def test_values_stay_bit_for_bit(self):
        weight, matrix = nn.Parameter(torch.randn(4, 3, 3, 3)), torch.randn(4, 9, 9)
        assert torch.equal(with_multiplied_gradient(weight, matrix), weight)
        with torch.no_grad():
            assert with_multiplied_gradient(weight, matrix) is weight

    def test_compiled(self):
        weight, g = nn.Parameter(torch.randn(4, 3, 3, 3).double()), torch.randn(4, 3, 3, 3).double()
        matrix = torch.randn(4, 9, 9).double()
        matrix = matrix + matrix.mT
        found = torch.compile(with_multiplied_gradient, backend='aot_eager', fullgraph=True)(weight, matrix)
        assert torch.equal(found, weight)
        (grad,) = torch.autograd.grad(found, weight, g)
        assert (grad - multiply_taps(g, matrix)).abs().max() < EXACT


def _processes(rank: int, port: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(orepa_mm.gradient_form(network()))
    train(model, sgd(model, momentum=0.9), (x[rank : rank + 1] for x in batches()), 3)
    torch.save(model.module.state_dict(), f'{folder}/{rank}.pth')
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads can wait for the interpreter, and it for them, when both end


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(_processes, (free_port(), str(tmp_path)), nprocs=2)
    alone = orepa_mm.gradient_form(network())
    train(alone, sgd(alone, momentum=0.9), batches(), 3)
    for rank in (0, 1):
        found = orepa_mm.gradient_form(network())
        found.load_state_dict(torch.load(tmp_path / f'{rank}.pth'))
        assert apart(alone, found) < EXACT


class TestBadInput:
    def refused(self, model: nn.Module, match: str, optimizer: torch.optim.Optimizer | None = None) -> None:
        keys, groups = list(model.state_dict()), [len(group['params']) for group in optimizer.param_groups] if optimizer else []
        with pytest.raises(GradientFormError, match=match):
            orepa_mm.gradient_form(model, optimizer)
        assert list(model.state_dict()) == keys
        assert not optimizer or [len(group['params']) for group in optimizer.param_groups] == groups

    def test_products(self):
        model = nn.Sequential(OREPAConv2d(4, 4, 3, branches='light'), OREPAConv2d(4, 4, 3), OREPAConv2d(4, 4, 1))
        self.refused(model, r'"1" \(sequence, separable\), "2" \(sequence\).*branches=\'light\'')

    def test_three_of_many_are_named(self):
        model = nn.Sequential(*(OREPAConv2d(4, 4, 1) for _ in range(5)))
        self.refused(model, r'these are products of weights: "0" \(sequence\), "1" \(sequence\), "2" \(sequence\) and 2 more\.')
        self.refused(model[:4], r'"2" \(sequence\) and 1 more\.')
        self.refused(model[:3], r'"2" \(sequence\)\.')

    def test_every_optimizer_is_looked_at(self):
        model = network()
        with pytest.raises(GradientFormError, match='SGD only'):
            orepa_mm.gradient_form(model, [sgd(model), torch.optim.Adam(model.parameters())])
        with pytest.raises(GradientFormError, match='SGD only'):
            check_gradient_form(model, torch.optim.Adam(model.parameters()))
        check_gradient_form(model, iter([sgd(model)]))
        assert not is_gradient_form(model)

    def test_nothing_to_turn(self):
        self.refused(nn.Sequential(nn.Conv2d(3, 3, 3)), 'no layer with branches')

    def test_other_optimizers(self):
        model = network()
        self.refused(model, 'exact for SGD only, and the optimizer is AdamW', torch.optim.AdamW(model.parameters()))
        orepa_mm.gradient_form(model, torch.optim.AdamW([nn.Parameter(torch.ones(1))]))  # it holds none of the kernels

    def test_the_constructor_refuses_them_too(self):
        model = orepa_mm.gradient_form(network())
        with pytest.raises(GradientFormError, match='SGD only'):
            OREPAOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=0.1)))(model)
        OREPAOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=0.1)))(model)

    def test_branches_that_are_treated_differently(self):
        model = network()
        avg = model[2].kernel.avg
        others = [p for p in model.parameters() if p is not avg]
        groups = [dict(params=others), dict(params=[avg], lr=1)]
        self.refused(model, '"2": the optimizer treats its branches', torch.optim.SGD(groups, lr=2))
        self.refused(model, '"2": the optimizer holds some', torch.optim.SGD(others, lr=2))
        avg.requires_grad_(False)
        self.refused(model, '"2": some of its branches are frozen')

    def test_branches_in_several_groups_of_the_same_settings(self):
        model = nn.Sequential(OREPAConv2d(4, 4, 3, branches='light', bias=False))
        kernel = model[0].kernel
        first, others = kernel.avg, [p for p in kernel.parameters() if p is not kernel.avg]
        optimizer = torch.optim.SGD([dict(params=[first], lr=0.5), dict(params=others, lr=0.5)], lr=0.1)
        orepa_mm.gradient_form(model, optimizer)
        assert sum((group['params'] for group in optimizer.param_groups), []) == [model[0].weight]

    @pytest.mark.parametrize('when', [{}, dict(epoch=1, iteration=2)])
    def test_when(self, when):
        with pytest.raises(GradientFormError, match='one of epoch and iteration'):
            GradientFormHook(**when)


@MODELS.register_module()
class LinearBranches(BaseModel):
    def __init__(self, branches: str = 'light'):
        super().__init__()
        self.layers = network(torch.float32)
        if branches != 'light':
            self.layers[2] = OREPAConv2d(6, 4, 3, 1, 1, branches=branches)

    def forward(self, inputs, mode):
        return dict(loss=loss_of(self.layers, inputs))


NETWORK, HOOK = dict(type='LinearBranches'), dict(type='GradientFormHook')


@pytest.mark.parametrize('by_iterations', [False, True])
def test_a_run_hands_over_and_resumes(by_iterations, tmp_path):
    whole = run(NETWORK, HOOK, tmp_path / 'whole', 4, by_iterations)
    model, optimizer = whole.model, whole.optim_wrapper.optimizer
    assert type(model.layers[2]) is GradientFormConv2d and not kernels(model)
    assert {id(p) for group in optimizer.param_groups for p in group['params']} == {id(p) for p in model.parameters()}
    ema = next(hook for hook in whole.hooks if type(hook).__name__ == 'EMAHook').ema_model
    assert ema.module.state_dict().keys() == model.state_dict().keys()
    assert ema.avg_parameters.keys() == dict(model.named_parameters()).keys()
    assert not torch.equal(ema.module.layers[2].weight, model.layers[2].weight)

    alone = dict(custom_hooks=[HOOK | dict(epoch=1)])  # as for a test
    loaded = built(NETWORK, HOOK, tmp_path / 'loaded', 4, by_iterations, **alone)
    loaded.load_checkpoint(last_checkpoint(tmp_path / 'whole'))
    assert torch.equal(loaded.model.layers[2].weight, ema.module.layers[2].weight)

    check_resuming(whole, NETWORK, HOOK, tmp_path / 'parts', by_iterations)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(model=dict(type='LinearBranches', branches='full')), r'"layers.2" \(sequence, separable\)'),
        (dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1))), 'SGD only'),
        (dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(custom_l2=True))), 'custom_l2'),
    ],
)
def test_a_run_that_could_not_hand_over_does_not_start(changes, match, tmp_path):
    with pytest.raises(GradientFormError, match=match):
        run(**dict(model=NETWORK, hook=HOOK, work_dir=tmp_path, epochs=2) | changes)
    assert not list(tmp_path.glob('*.pth'))


def test_a_classifier_in_gradient_form_becomes_the_stock_network():
    cfg = config('classifier', model__backbone__branches='light')
    model, x = build_model(cfg).double().eval(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    state = orepa_mm.gradient_form(model).state_dict()
    assert (model(x) - expected).abs().max() < EXACT * expected.abs().max()
    again = build_model(cfg).double().eval()
    check_state_dict(again, state, 'the checkpoint', strict=True)
    again.load_state_dict(state)
    assert (again(x) - expected).abs().max() < EXACT * expected.abs().max()
    cfg.model.backbone.method, cfg.model.backbone.branches = 'none', None
    plain = build_model(cfg).double().eval()
    plain.load_state_dict(orepa_mm.reparameterize(model).state_dict())
    assert (plain(x) - expected).abs().max() < EXACT * expected.abs().max()
