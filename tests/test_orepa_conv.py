"""OREPAConv2d as a layer: forms, arguments, gradients, and everything a training script does to a module."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import few
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.errors import LayerError
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.layers.stem import DeepLinearKernel

FORMS = {
    'kxk': dict(kernel_size=3, padding=1),
    '5x5': dict(kernel_size=5, padding=2),
    '1x1': dict(kernel_size=1),
    'stem': dict(kernel_size=7, stride=2, padding=3),
    'plain-stages': dict(kernel_size=7, padding=3, plain_stages=True),
    'grouped': dict(kernel_size=3, groups=2, padding=1),
    'many-groups': dict(kernel_size=3, groups=6, padding=1),
    'grouped-1x1': dict(kernel_size=1, groups=3),
    'grouped-stem': dict(kernel_size=7, groups=3, padding=3),
    'dilated': dict(kernel_size=3, dilation=2, padding=2, stride=2),
}


def build(form: str, **kwargs) -> OREPAConv2d:
    conv = OREPAConv2d(6, 12, **FORMS[form], **kwargs)
    with torch.no_grad():  # away from the initial values, where a branch starts at zero
        for parameter in conv.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return conv


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize(
    ('size', 'kind'), [(1, OREPAKernel), (3, OREPAKernel), (5, OREPAKernel), (7, DeepLinearKernel), (9, DeepLinearKernel)]
)
def test_form_follows_from_the_kernel_size(size, kind):
    conv = OREPAConv2d(4, 8, size)
    assert type(conv.kernel) is kind
    assert conv.weight.shape == (8, 4, size, size)


def test_plain_sizes_of_a_conv_cfg():
    def build(*args, **kwargs):
        return build_conv_layer(dict(type='OREPAConv2d', plain_sizes=(1,), branches='light'), *args, **kwargs)

    conv = build(4, 8, kernel_size=1, stride=2, bias=False)
    assert type(conv) is nn.Conv2d and conv.stride == (2, 2) and conv.bias is None
    assert type(build(4, 8, (1, 1), 2)) is nn.Conv2d and type(build(4, 8, 3)) is OREPAConv2d
    assert type(build(4, 8, [1, 1])) is type(build(4, 8, kernel_size=torch.Size([1, 1]))) is nn.Conv2d
    with pytest.raises(LayerError, match='square kernel'):
        build(4, 8, (1, 3))
    with pytest.raises(TypeError):  # by position it would be taken for something else
        OREPAConv2d(4, 8, 1, 1, 0, 1, 1, True, 'zeros', None, None, (1,))


@pytest.mark.parametrize('form', few(FORMS, *(form for form in FORMS if 'stem' not in form)))
def test_gradcheck_of_every_branch(form):
    kwargs = dict(FORMS[form], padding=FORMS[form].get('padding', 0))
    kwargs['groups'] = min(kwargs.get('groups', 1), 2)
    conv = OREPAConv2d(2, 4, **kwargs, bias=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn_like(parameter))
    names = [name for name, _ in conv.named_parameters()]
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(conv, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *conv.parameters()))


@pytest.mark.parametrize('mode', ['zeros', 'reflect', 'replicate', 'circular'])
@pytest.mark.parametrize('padding', [1, 'same'])
def test_arguments_mean_what_they_mean_in_torch(mode, padding):
    conv = OREPAConv2d(4, 8, 3, padding=padding, padding_mode=mode)
    stock = nn.Conv2d(4, 8, 3, padding=padding, padding_mode=mode)
    stock.weight.data, stock.bias.data = conv.weight.detach(), conv.bias.detach()
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(conv(x), stock(x))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(kernel_size=4), 'odd'),
        (dict(kernel_size=(1, 3)), 'square'),
        (dict(kernel_size=3, groups=5), 'divisible by groups'),
        (dict(kernel_size=3, padding_mode='mirror'), 'padding_mode'),
        (dict(kernel_size=3, padding='same', stride=2), 'strided'),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OREPAConv2d(6, 12, **kwargs)


def test_every_parameter_gets_a_gradient():
    for form in FORMS:
        conv = build(form, bias=True)
        conv(torch.randn(1, 6, 9, 9)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in conv.parameters()), form


@pytest.mark.parametrize('form', FORMS)
def test_copies_and_state_dict_round_trip(form):
    conv = build(form)
    x = torch.randn(1, 6, 9, 9)
    expected = conv(x)
    assert torch.equal(copy.deepcopy(conv)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(conv))(x), expected)
    buffer = io.BytesIO()
    torch.save(conv.state_dict(), buffer)
    buffer.seek(0)
    other = OREPAConv2d(6, 12, **FORMS[form])
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), expected)


def test_ema_wrapper_averages_the_branches():
    conv = build('kxk')
    average = ExponentialMovingAverage(conv, momentum=0.5)
    start = conv.kernel.origin.detach().clone()
    average.update_parameters(conv)
    with torch.no_grad():
        conv.kernel.origin.add_(1)
    average.update_parameters(conv)
    assert torch.allclose(average.module.kernel.origin, start + 0.5)
    assert average(torch.randn(1, 6, 8, 8)).shape == (1, 12, 8, 8)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_squeezes_in_full_precision(dtype):
    conv = build('kxk')
    with torch.autocast('cpu', dtype=dtype):
        assert conv.weight.dtype == torch.float32
        y = conv(torch.randn(1, 6, 8, 8))
        y.float().sum().backward()
    assert y.dtype == dtype
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in conv.parameters())
    with torch.autocast('cpu', enabled=False):
        full = conv.weight
    with torch.autocast('cpu', dtype=dtype):
        assert torch.equal(conv.weight, full)


@pytest.mark.parametrize('form', FORMS)
def test_channels_last(form):
    conv = build(form)
    x = torch.randn(2, 6, 9, 9)
    expected = conv(x)
    conv.to(memory_format=torch.channels_last)
    actual = conv(x.to(memory_format=torch.channels_last))
    assert relative(actual, expected) < 1e-5
    actual.sum().backward()


def test_gradient_checkpointing():
    conv = build('kxk')
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    conv(x).square().sum().backward()
    expected = [p.grad.clone() for p in conv.parameters()]
    conv.zero_grad()
    checkpoint(conv, x, use_reentrant=False).square().sum().backward()
    for actual, wanted in zip((p.grad for p in conv.parameters()), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_double_use_in_one_step_accumulates():
    conv = build('kxk', bias=False)
    x = torch.randn(1, 6, 9, 9)
    (conv(x) + conv(x)).sum().backward()
    twice = conv.kernel.pointwise.grad.clone()
    conv.zero_grad()
    conv(x).sum().backward()
    assert relative(twice, 2 * conv.kernel.pointwise.grad) < 1e-5


@pytest.mark.parametrize('form', ['kxk', '1x1', 'stem'])
def test_compiled_equals_eager(form):
    conv = build(form)
    x = torch.randn(1, 6, 9, 9)
    expected = conv(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in conv.named_parameters()}
    conv.zero_grad()
    torch.compiler.reset()  # one limit of recompilations holds for all layers of a process
    # aot_eager traces forward and backward as the default backend does, without calling a C++ compiler.
    actual = torch.compile(conv, backend='aot_eager', fullgraph=True)(x)
    actual.square().sum().backward()
    assert relative(actual, expected) < 1e-5
    for name, p in conv.named_parameters():
        assert relative(p.grad, gradients[name]) < 1e-4, name  # sums of squares: float32 twice


def test_stock_initialisers_leave_it_alone():
    from mmengine.model import BaseModule

    class Net(BaseModule):
        def __init__(self):
            super().__init__(init_cfg=[dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=0, layer='Conv2d', bias=7)])
            self.conv = OREPAConv2d(16, 16, 3)
            self.stock = nn.Conv2d(16, 16, 3)

    net = Net()
    net.init_weights()
    assert (net.stock.weight == 0).all() and (net.stock.bias == 7).all()  # the initialisers did run
    kernel = net.conv.kernel
    assert torch.equal(kernel.scale[:, 0], torch.tensor([0.25, 0.25, 0.0, 0.5, 1.0, 0.5]))
    bound = (6 / (16 * 9)) ** 0.5  # Kaiming uniform with a = 0, fan in of the kernel
    assert 0.9 * bound < kernel.origin.abs().max() <= bound
    assert (kernel.seq_1x1 == 0).all() and (net.conv.bias == 0).all()


@pytest.mark.parametrize('kind', ['OREPAConv2d', 'DBBConv2d'])
def test_spectral_norm_is_refused(kind):
    options = dict(padding=1, with_spectral_norm=True)
    assert hasattr(ConvModule(4, 4, 3, **options).conv, 'weight_orig')
    with pytest.raises(LayerError, match="no parameter 'weight'.*plain convolution"):
        ConvModule(4, 4, 3, conv_cfg=dict(type=kind), **options)


def test_a_layer_that_cannot_start_from_a_plain_kernel_refuses_it_even_when_not_strict():
    net = nn.Sequential(DBBConv2d(4, 8, 3, padding=1))
    with pytest.raises(RuntimeError, match=r'plain kernel "0\.weight".*re-parameterized'):
        net.load_state_dict(nn.Sequential(nn.Conv2d(4, 8, 3)).state_dict(), strict=False)


def test_casts_do_not_round_the_constants():
    conv = OREPAConv2d(4, 8, 3)
    expected = conv.kernel.prior.clone()
    assert torch.equal(conv.half().float().kernel.prior, expected)
    exact = OREPAConv2d(4, 8, 3, dtype=torch.float64).kernel.prior
    assert torch.equal(conv.double().kernel.prior, exact)


@pytest.mark.parametrize('form', FORMS)
def test_the_closed_form_equals_the_plain_formula(form):
    fused = build(form, dtype=torch.float64)
    plain = copy.deepcopy(fused)
    for conv in (fused, plain):
        for module in conv.modules():
            if isinstance(module, OREPAKernel):
                module.closed_form = conv is fused
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    for conv in (fused, plain):
        y = conv(x) + conv(2 * x).square()  # a layer used twice
        y.sum().backward()
    assert relative(fused.weight, plain.weight) < 1e-10
    for (name, p), q in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert relative(p.grad, q.grad) < 1e-10, name


@pytest.mark.parametrize('form', [form for form in FORMS if FORMS[form]['kernel_size'] < 7])
def test_squeezing_keeps_hardly_more_than_the_parameters(form):
    conv = build(form)
    own = {t.untyped_storage().data_ptr() for t in [*conv.parameters(), *conv.buffers()]}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        weight = conv.weight
    others = [t for t in kept if t.untyped_storage().data_ptr() not in own]
    # Of a k x k kernel the sequence's 1x1 kernel with its identity, and the frequency prior.
    assert kept and (not others or {t.shape for t in others} == {conv.kernel.seq_1x1.shape, conv.kernel.prior.shape})
    weight.sum().backward()


def test_in_small_pieces_the_numbers_are_the_same(monkeypatch):
    from orepa_mm.functional import closed_form

    conv = build('grouped', dtype=torch.float64)
    results = []
    for chunk in (1 << 19, 50):
        monkeypatch.setattr(closed_form, 'CHUNK', chunk)
        conv.zero_grad()
        conv.weight.square().sum().backward()
        results.append([conv.weight, *(p.grad for p in conv.kernel.parameters())])
    assert all(relative(a, b) < 1e-10 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('form', FORMS)
def test_second_derivatives_are_those_of_the_plain_formula(form):
    conv = build(form, dtype=torch.float64)
    results = []
    for closed_form in (True, False):
        for module in conv.modules():
            if isinstance(module, OREPAKernel):
                module.closed_form = closed_form
        parameters = list(conv.kernel.parameters())
        first = torch.autograd.grad(conv.weight.pow(3).sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
        results.append([*first, *second])
    assert all(relative(a, b) < 1e-10 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('form', ['kxk', 'grouped', 'many-groups', 'stem'])
def test_checkpoints_with_the_other_order_of_channels_load(form):
    conv = build(form)
    groups, state = conv.groups, {}
    for key, value in conv.state_dict().items():
        if key.endswith('depthwise'):
            key, value = key.replace('depthwise', 'dw'), value.unflatten(0, (groups, 8, -1)).transpose(1, 2).flatten(0, 2)
        elif key.endswith('pointwise'):
            key, value = key.replace('pointwise', 'pw'), value.unflatten(1, (8, -1)).transpose(1, 2).flatten(1, 2)
        state[key] = value
    assert any(key.endswith('.dw') for key in state)
    other = build(form)
    other.load_state_dict(state)
    assert torch.equal(other.weight, conv.weight)


def write_into_a_view(conv):
    conv.kernel.origin.data[0].mul_(2)


def write_through_numpy(conv):
    conv.kernel.origin.detach()[1:].numpy()[:] *= 2


def prune_twice(conv):
    prune.random_unstructured(conv.kernel, 'origin', amount=0.3)
    conv(torch.randn(1, 6, 9, 9))
    prune.random_unstructured(conv.kernel, 'origin', amount=0.5)


class Masked(nn.Module):
    def __init__(self, like):
        super().__init__()
        self.register_buffer('mask', torch.ones_like(like))

    def forward(self, weight):
        return weight * self.mask


def change_a_buffer_of_a_parametrization(conv):
    nn.utils.parametrize.register_parametrization(conv.kernel, 'origin', Masked(conv.kernel.origin))
    conv(torch.randn(1, 6, 9, 9))
    conv.kernel.parametrizations.origin[0].mask.zero_()


def step_of_a_fused_optimizer(conv):
    conv(torch.randn(1, 6, 9, 9)).sum().backward()
    torch.optim.SGD(conv.parameters(), 0.1, fused=True).step()


@pytest.mark.parametrize(
    'change',
    [write_into_a_view, write_through_numpy, prune_twice, change_a_buffer_of_a_parametrization, step_of_a_fused_optimizer],
    ids=lambda change: change.__name__,
)
def test_whatever_changes_the_weights_the_next_output_is_of_the_new_ones(change):
    conv, x = build('kxk').eval(), torch.randn(1, 6, 9, 9)
    with torch.no_grad():
        before = conv(x)
    change(conv)
    with torch.no_grad():
        after = conv(x)
        conv.kernel.closed_form = False  # computed from the weights by the formula, here and now
        assert not torch.equal(before, after) and relative(after, conv(x)) < 1e-5


def test_inference_in_threads_beside_a_change_of_mode():
    conv, x = build('kxk').eval(), torch.randn(1, 6, 9, 9)
    with torch.no_grad():
        expected = conv(x)
    with ThreadPoolExecutor(3) as pool:
        outputs = [pool.submit(torch.no_grad()(conv), x) for _ in range(60)]
        for _ in range(20):
            conv.eval()
    assert all(torch.equal(output.result(), expected) for output in outputs)
