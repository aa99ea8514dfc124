"""ExpandNetConv2d: the published sequence's arithmetic, one convolution for it, and the way from one."""

import copy

import pytest
import torch
from torch import nn

from orepa_mm import expand, reparameterize
from orepa_mm.errors import ExpandError, LayerError
from orepa_mm.layers import ExpandNetConv2d

FORMS = {  # the last two tell the two orders of the products apart
    'strided': dict(kernel_size=3, padding=1, stride=2),
    'grouped': dict(kernel_size=3, padding=1, groups=2, bias=False),
    '5x5': dict(kernel_size=5, padding=1, dilation=2),
    '1x1': dict(kernel_size=1),
    'wider': dict(kernel_size=3, padding=1, out_channels=10, expansion=2),
    'narrower': dict(kernel_size=3, padding=1, out_channels=2, expansion=3),
}


def layer_of(form: str, dtype: torch.dtype = torch.float64) -> ExpandNetConv2d:
    layer = ExpandNetConv2d(4, **dict(dict(out_channels=6), **FORMS[form]), dtype=dtype)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def relative(actual, expected) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('form', FORMS)
def test_three_convolutions_in_sequence(form):
    """The expanded layer (paper, section 3.1): 1x1 to r I channels, k x k to r O with stride and padding, 1x1 to O."""
    layer, options = layer_of(form), dict(FORMS[form])
    r, groups = options.pop('expansion', 4), options.get('groups', 1)
    o, bias, k = options.pop('out_channels', 6), options.pop('bias', True), options.pop('kernel_size')
    sequence = nn.Sequential(
        nn.Conv2d(4, 4 * r, 1, groups=groups, bias=False),
        nn.Conv2d(4 * r, o * r, k, bias=False, **options),
        nn.Conv2d(o * r, o, 1, groups=groups, bias=bias),
    ).double()
    for conv, weight in zip(sequence, (layer.kernel.first, layer.kernel.middle, layer.kernel.last), strict=True):
        assert conv.weight.shape == weight.shape
        conv.weight = weight
    sequence[2].bias = layer.bias
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = sequence(x)
    assert relative(layer(x), expected) < 1e-10
    plain = reparameterize(layer.eval())
    assert type(plain) is nn.Conv2d and relative(plain(x), expected) < 1e-10


def test_every_parameter_learns_and_the_start_keeps_the_variance():
    torch.manual_seed(0)
    layer = ExpandNetConv2d(64, 64, 3, bias=False)
    # Before a ReLU a kernel of variance 2 / (I k k) keeps it (He et al., 2015); here over 36864 weights, to a tenth.
    assert layer.weight.var().item() * 64 * 9 == pytest.approx(2, rel=0.1)
    layer(torch.randn(2, 64, 5, 5)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


@pytest.mark.parametrize('groups', [1, 2])
def test_plain_kernels_are_expanded(groups):
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups), nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 4, 7, padding=3))
    model = model.double().to(memory_format=torch.channels_last)
    reference = copy.deepcopy(model)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert all(type(layer) is ExpandNetConv2d for layer in expand(model, method='ExpandNet'))
    assert relative(model(x), reference(x)) < 1e-10
    # A step of the k x k kernel moves the product as a plain kernel's step would.
    for layer, conv in zip(model, reference, strict=True):
        loss = torch.randn_like(conv.weight)
        (layer.weight * loss).sum().backward()
        before = layer.weight.detach()
        with torch.no_grad():
            layer.kernel.middle -= layer.kernel.middle.grad
            assert relative(layer.weight - before, -loss) < 1e-6  # drawn in float32, so orthonormal to its rounding
    states = reference.state_dict()
    model.load_state_dict(states)  # a plain checkpoint
    assert relative(model(x), reference(x)) < 1e-10
    reparameterize(model)
    assert model.state_dict().keys() == states.keys()


def test_half_precision_keeps_the_kernel():
    conv = nn.Conv2d(8, 8, 3, dtype=torch.bfloat16)
    kernel = expand(conv, method='ExpandNet').double().weight
    # One rounding of the k x k kernel, 2**-9 of each weight, spread by products with orthonormal rows.
    assert relative(kernel, conv.weight.double()) < 2**-7


def test_bad_arguments_are_refused():
    with pytest.raises(LayerError, match='expansion=0 must be at least 1'):
        ExpandNetConv2d(4, 6, 3, expansion=0)
    with pytest.raises(LayerError, match='odd'):
        ExpandNetConv2d(4, 6, 2)
    with pytest.raises(ExpandError, match=r"branches=\('origin',\) is for method='OREPA', not 'ExpandNet'"):
        expand(nn.Conv2d(4, 4, 3), method='ExpandNet', branches=('origin',))
