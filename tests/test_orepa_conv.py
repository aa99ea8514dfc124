"""OREPAConv2d: its branches, written out, and everything a training script does to a module."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import fused
from method_case import FORMS as COMMON
from method_case import MethodCase, relative
from mmcv.cnn import build_conv_layer
from mmengine.model import ExponentialMovingAverage
from plain_formula import written_out
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from orepa_mm import OREPAConv2d
from orepa_mm.errors import LayerError
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.layers.stem import DeepLinearKernel


class TestOREPA(MethodCase):
    layer = OREPAConv2d
    forms = {
        'stem': dict(kernel_size=7, stride=2, padding=3),
        'plain-stages': dict(kernel_size=7, padding=3, plain_stages=True),
        'many-groups': dict(kernel_size=3, groups=6, padding=1),
        'grouped-1x1': dict(kernel_size=1, groups=3),
        'grouped-stem': dict(kernel_size=7, groups=3, padding=3),
        'light': dict(kernel_size=3, padding=1, branches='light'),
    }

    def formula(self, layer, x):
        return written_out(layer, x)


FORMS = COMMON | TestOREPA.forms


def build(form: str, **kwargs) -> OREPAConv2d:
    return TestOREPA().build(form, **dict(dict(dtype=torch.float32), **kwargs))


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


def test_ema_wrapper_averages_the_branches():
    conv = build('3x3')
    average = ExponentialMovingAverage(conv, momentum=0.5)
    start = conv.kernel.origin.detach().clone()
    average.update_parameters(conv)
    with torch.no_grad():
        conv.kernel.origin.add_(1)
    average.update_parameters(conv)
    assert torch.allclose(average.module.kernel.origin, start + 0.5)
    assert average(torch.randn(1, 6, 8, 8)).shape == (1, 12, 8, 8)


def test_gradient_checkpointing():
    conv = build('3x3')
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    conv(x).square().sum().backward()
    expected = [p.grad.clone() for p in conv.parameters()]
    conv.zero_grad()
    checkpoint(conv, x, use_reentrant=False).square().sum().backward()
    for actual, wanted in zip((p.grad for p in conv.parameters()), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_double_use_in_one_step_accumulates():
    conv = build('3x3', bias=False)
    x = torch.randn(1, 6, 9, 9)
    (conv(x) + conv(x)).sum().backward()
    twice = conv.kernel.pointwise.grad.clone()
    conv.zero_grad()
    conv(x).sum().backward()
    assert relative(twice, 2 * conv.kernel.pointwise.grad) < 1e-5


@pytest.mark.parametrize('form', ['3x3', '1x1', 'stem'])
def test_compiled_equals_eager(form):
    conv = build(form)
    x = torch.randn(1, 6, 9, 9)
    expected = conv(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in conv.named_parameters()}
    conv.zero_grad()
    torch.compiler.reset()  # one limit of recompilations holds for all layers of a process
    # aot_eager traces forward and backward as the default backend does, without calling a C++ compiler.
    whole = torch.__version__ >= '2.4'  # older ones leave the compiled graph, to come back
    actual = torch.compile(conv, backend='aot_eager', fullgraph=whole)(x)
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


def test_casts_do_not_round_the_constants():
    conv = OREPAConv2d(4, 8, 3)
    expected = conv.kernel.prior.clone()
    assert torch.equal(conv.half().float().kernel.prior, expected)
    exact = OREPAConv2d(4, 8, 3, dtype=torch.float64).kernel.prior
    assert torch.equal(conv.double().kernel.prior, exact)


@pytest.mark.parametrize('form', [form for form in FORMS if FORMS[form]['kernel_size'] < 7])
def test_squeezing_keeps_hardly_more_than_the_parameters(form):
    conv = build(form)
    own = {t.untyped_storage().data_ptr() for t in [*conv.parameters(), *conv.buffers()]}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        weight = conv.weight
    others = {t.shape for t in kept if t.untyped_storage().data_ptr() not in own}
    # Of a k x k kernel the sequence's 1x1 kernel with its identity, and the frequency prior.
    assert kept and others <= {value.shape for value in (conv.kernel.seq_1x1, conv.kernel.prior) if value is not None}
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


@pytest.mark.parametrize('form', ['3x3', 'grouped', 'many-groups', 'stem'])
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
    fused(torch.optim.SGD, conv.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    'change',
    [write_into_a_view, write_through_numpy, prune_twice, change_a_buffer_of_a_parametrization, step_of_a_fused_optimizer],
    ids=lambda change: change.__name__,
)
def test_whatever_changes_the_weights_the_next_output_is_of_the_new_ones(change):
    conv, x = build('3x3').eval(), torch.randn(1, 6, 9, 9)
    with torch.no_grad():
        before = conv(x)
    change(conv)
    with torch.no_grad():
        after = conv(x)
        conv.kernel.closed_form = False  # computed from the weights by the formula, here and now
        assert not torch.equal(before, after) and relative(after, conv(x)) < 1e-5


def test_inference_in_threads_beside_a_change_of_mode():
    conv, x = build('3x3').eval(), torch.randn(1, 6, 9, 9)
    with torch.no_grad():
        expected = conv(x)
    with ThreadPoolExecutor(3) as pool:
        outputs = [pool.submit(torch.no_grad()(conv), x) for _ in range(60)]
        for _ in range(20):
            conv.eval()
    assert all(torch.equal(output.result(), expected) for output in outputs)
