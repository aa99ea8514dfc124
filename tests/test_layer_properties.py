"""Single layers of every shape: the squeezed convolution is the sum of its branches, in output, gradients and every form it can take."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_formula import written_out
from random_layers import HALF, layers
from torch import Tensor, nn

from orepa_mm import OREPAConv2d, expand, reparameterize
from orepa_mm.errors import LayerError
from orepa_mm.layers import ReparameterizableConv2d
from orepa_mm.layers.kernels import STARTS

# Of the scale: rounding of sums of some hundred terms; in half precision each branch of a block is rounded by itself, ten roundings in all.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def difference(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    scale = expected.abs().max() if scale is None else scale
    return ((actual.double() - expected.double()).abs().max() / scale.double().clamp_min(1e-12)).item()


@given(layers(), st.booleans())
def test_output_and_gradients_are_those_of_the_branches(case, training):
    layer, x = case
    several = min(y.numel() // y.shape[1] for y in (x, layer(x))) > 1  # values a channel, or batch norms refuse
    layer.train(training and several and x.dtype == torch.float64)  # statistics of a few values amplify rounding
    reference, exact = copy.deepcopy(layer).double(), x.double().requires_grad_()
    x.requires_grad_()
    y = layer(x)
    for norm, updated in zip(reference.modules(), layer.modules(), strict=True):
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean, norm.running_var = updated.running_mean.double(), updated.running_var.double()
    expected = written_out(reference, exact)
    assert y.shape == expected.shape and y.dtype == x.dtype
    assert difference(y, expected) < TOLERANCES[x.dtype]
    direction = torch.randn_like(y)
    actual = torch.autograd.grad(y, [x, *layer.parameters()], direction)
    wanted = torch.autograd.grad(expected, [exact, *reference.parameters()], direction.double())
    scale = max(gradient.abs().max() for gradient in wanted)  # a norm after a norm leaves only rounding of some
    for gradient, parameter, right in zip(actual, (x, *layer.parameters()), wanted, strict=True):
        assert gradient.shape == parameter.shape and gradient.dtype == x.dtype
        assert difference(gradient, right, scale) < TOLERANCES[x.dtype]


@given(layers(dtypes=HALF))
def test_weights_in_half_precision(case):
    """Without oneDNN, whose convolutions in bfloat16 get outputs and gradients wrong where a tap meets only padding.

    No gradients through a convolution here, for the same reason.
    """
    layer, x = case
    reference = copy.deepcopy(layer).double()
    with torch.backends.mkldnn.flags(enabled=False):
        assert difference(layer(x), written_out(reference, x.double())) < TOLERANCES[x.dtype]
    plain, exact = (reparameterize(copy.deepcopy(form)) for form in (layer, reference))
    for parameter, right in zip(plain.parameters(), exact.parameters(), strict=True):  # rounded once, by half a unit in the last place
        assert parameter.dtype == x.dtype and difference(parameter, right) < 0.6 * torch.finfo(x.dtype).eps
    if isinstance(layer, OREPAConv2d):
        kernel, exact = layer.weight, reference.weight
        direction = torch.randn_like(kernel)
        actual = torch.autograd.grad(kernel, list(layer.kernel.parameters()), direction)
        wanted = torch.autograd.grad(exact, list(reference.kernel.parameters()), direction.double())
        scale = max(gradient.abs().max() for gradient in wanted)
        assert all(difference(gradient, right, scale) < TOLERANCES[x.dtype] for gradient, right in zip(actual, wanted, strict=True))


@given(layers(), st.sampled_from(tuple(STARTS)))
def test_every_form_computes_the_same(case, start):
    """Training form, its state dict in another layer, the plain form, the plain form expanded and loaded as a plain kernel."""
    layer, x = case
    expected, tolerance = layer(x), TOLERANCES[x.dtype]

    twin = copy.deepcopy(layer)
    for value in twin.state_dict().values():
        value.zero_()
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(twin(x), expected)

    plain = reparameterize(copy.deepcopy(layer))
    assert difference(plain(x), expected) < tolerance
    if not isinstance(layer, ReparameterizableConv2d):
        return
    assert type(plain) is nn.Conv2d and not plain.training and difference(layer.weight, plain.weight) < tolerance
    size, per_group, inputs = plain.kernel_size[0], plain.out_channels // plain.groups, plain.in_channels // plain.groups
    if size >= 7 and per_group < 9 * inputs:
        with pytest.raises(LayerError, match='output channels'):
            OREPAConv2d.from_conv(plain, start)
        return
    expanded = expand(copy.deepcopy(plain), start=start)
    assert type(expanded) is OREPAConv2d and difference(expanded(x), expected) < tolerance
    again = reparameterize(expanded)
    assert difference(again.weight, plain.weight) < tolerance and again.state_dict().keys() == plain.state_dict().keys()
    if isinstance(layer, OREPAConv2d) and hasattr(getattr(layer.kernel, 'stages', [layer.kernel])[0], 'origin'):
        twin.load_state_dict(plain.state_dict())
        assert difference(twin(x), expected) < tolerance
