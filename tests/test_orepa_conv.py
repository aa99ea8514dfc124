"""OREPAConv2d: its branches, written out, and everything a training script does to a module."""

import pytest
import torch
from method_case import FORMS as COMMON
from method_case import MethodCase, relative
from mmcv.cnn import build_conv_layer
from plain_formula import written_out
from torch import nn

from orepa_mm import OREPAConv2d
from orepa_mm.errors import LayerError


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


@pytest.mark.parametrize('form', ['3x3', 'stem'])
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
