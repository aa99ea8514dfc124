"""How far two forms of a layer are apart, by differences that are known."""

import copy
from collections import OrderedDict

import pytest
import torch
from conftest import needs_torch
from torch import nn

from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.reparam import plan_swaps
from orepa_mm.reparam.comparison import LayerComparison, largest_difference, tensors
from orepa_mm.reparam.convert import Swap
from orepa_mm.testing import assert_forms_agree

TINY = torch.finfo(torch.float32).tiny


def test_all_tensors_in_a_fixed_order():
    a, b, c, d, e = (torch.full((1,), float(i)) for i in range(5))
    nested = {'z': [a, (b, 'word', torch.tensor([7]))], 2: c, 'y': OrderedDict(k=d, j=e), 'none': None}
    assert [int(value) for value in tensors(nested)] == [2, 4, 3, 0, 1]
    assert list(tensors('word')) == [] and list(tensors(torch.tensor([1, 2]))) == []


@pytest.mark.parametrize(
    ('expected', 'actual', 'difference'),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([-4.0, 2.0], [-4.0, 4.0], 0.5),
        ([0.0, 0.0], [0.0, 2 * TINY], 2.0),
        ([float('nan'), 1.0], [1.0, 1.0], float('inf')),
        ([1.0, 1.0], [float('inf'), 1.0], float('inf')),
        ([], [], 0.0),
    ],
)
def test_the_difference_is_relative_to_the_expected_output(expected, actual, difference):
    expected, actual = torch.tensor(expected), torch.tensor(actual)
    assert largest_difference(expected, actual) == difference
    pair = [torch.tensor([]), expected, torch.tensor([16.0])], [torch.tensor([]), actual, torch.tensor([15.0])]
    assert largest_difference(*pair) == max(difference, 1 / 16)  # each tensor by its own scale


def test_outputs_of_another_structure_are_no_match():
    with pytest.raises(ValueError, match='shorter'):
        largest_difference([torch.ones(1), torch.ones(1)], [torch.ones(1)])


def apart(layer: nn.Module, factor: float, path: str = 'layer') -> Swap:
    """A plain form whose outputs are ``factor`` times the layer's."""
    (swap,) = plan_swaps(nn.Sequential(layer))
    with torch.no_grad():
        swap.new.weight.mul_(factor)
    return Swap(swap.parent, swap.name, path, swap.old, swap.new)


def test_the_largest_difference_of_all_calls_is_kept():
    layer = OREPAConv2d(4, 4, 3, bias=False, dtype=torch.float64)
    swap = apart(layer, 1.0)
    layer.register_forward_hook(lambda module, args, output: 2 * output)  # comes after the comparison
    comparison = LayerComparison([swap, swap])  # once, whatever the number of places
    assert comparison.differences == {} and len(layer._forward_hooks) == 2
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    for factor, largest in ((1.125, 0.125), (1.25, 0.25), (0.875, 0.25)):
        with torch.no_grad():
            swap.new.weight.copy_(factor * layer.weight)
        layer(x)
        assert comparison.differences.keys() == {'layer'}
        assert comparison.differences['layer'].largest == pytest.approx(largest, rel=1e-12)
        assert comparison.differences['layer'].parameter is next(layer.parameters())
    comparison.stop()
    assert len(layer._forward_hooks) == 1


@pytest.mark.parametrize('named', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype, named):
    """A difference far below half precision's rounding is seen as it is."""
    layer, x = OREPAConv2d(8, 8, 3, bias=False).to(dtype), torch.randn(1, 8, 5, 5, dtype=dtype)
    plain = nn.Conv2d(8, 8, 3, bias=False)
    plain.weight = nn.Parameter(copy.deepcopy(layer).float().weight.detach() * (1 + 2**-12))
    dtypes = []
    # In float32, as float16 could not hold the difference.
    plain.forward = lambda input: dtypes.append(input.dtype) or nn.functional.conv2d(input.float(), plain.weight)
    comparison = LayerComparison([Swap(nn.Sequential(layer), '0', 'layer', layer, plain)])
    layer(input=x) if named else layer(x)
    assert comparison.differences['layer'].largest == pytest.approx(2**-12, rel=0.05) and dtypes == [dtype, torch.float32]
    assert layer.kernel.scale.dtype == dtype
    layer = OREPAConv2d(8, 8, 3, bias=False)
    comparison = LayerComparison([apart(layer, 1 + 2**-12)])
    with torch.autocast('cpu', dtype):
        layer(torch.randn(1, 8, 5, 5))
    assert comparison.differences['layer'].largest == pytest.approx(2**-12, rel=0.05)


def test_every_layer_is_compared_and_only_numbers_that_are_rounded_are_widened():
    class Seen(list):
        def __deepcopy__(self, memo):
            return self  # one list for a layer and its copy in float32

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor, self.got = nn.Parameter(torch.ones(1, dtype=torch.float16)), Seen()

        def forward(self, x, index, mode='', shift=None):
            self.got.append((x.dtype, index.dtype, mode, shift.dtype))
            return x[index] * self.factor

    layers, plain = [Scale(), Scale()], [Scale(), Scale()]
    comparison = LayerComparison([Swap(nn.Sequential(a), '0', f'{i}', a, b) for i, (a, b) in enumerate(zip(layers, plain, strict=True))])
    for layer in layers:
        layer(torch.ones(3, dtype=torch.float16), torch.tensor([2, 0]), mode='flip', shift=torch.tensor([1]))
    assert comparison.differences.keys() == {'0', '1'}
    for each in (*layers, *plain):  # once as it runs, once in float32
        assert each.got == [(dtype, torch.int64, 'flip', torch.int64) for dtype in (torch.float16, torch.float32)]


def test_values_that_are_not_finite_in_half_precision_are_told_at_once():
    needs_torch('2.3', 'half precision on a CPU')
    """Float32 would hold them, but the run does not compute in float32."""
    layer = OREPAConv2d(4, 4, 1, bias=False).half()
    comparison = LayerComparison([apart(layer, 1.0)])
    layer(torch.ones(1, 4, 2, 2, dtype=torch.float16))
    assert comparison.differences['layer'].largest < 1e-3  # the plain kernel is rounded once more
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(8)
    layer(torch.full((1, 4, 2, 2), 6e4, dtype=torch.float16))
    assert comparison.differences['layer'].largest == float('inf')


def test_forms_that_agree_and_a_layer_that_does_not(monkeypatch):
    model = nn.Sequential(OREPAConv2d(4, 4, 3), nn.ReLU(), DBBConv2d(4, 4, 3, padding=1)).eval()
    x, modules = torch.randn(1, 4, 9, 8), list(model.modules())
    for inputs in (x, (x,), dict(input=x)):
        assert_forms_agree(model, inputs)
    assert_forms_agree(OREPAConv2d(4, 4, 3).bfloat16(), x.bfloat16())
    monkeypatch.setattr(DBBConv2d, 'equivalent_conv', lambda self: (self.origin.weight, torch.ones(4)))
    with pytest.raises(AssertionError, match=r'forms differ by .*, more than 1e-05; the layer that differs most is "2", by'):
        assert_forms_agree(model, x)
    with pytest.raises(AssertionError, match=r'more than 1e-03; .* is "", by'):
        assert_forms_agree(model[2], x, tolerance=1e-3)
    assert list(model.modules()) == modules and not any(module._forward_hooks for module in modules)
    assert_forms_agree(model, x, tolerance=1e3)
    with pytest.raises(AssertionError, match='no branches'):
        assert_forms_agree(nn.Conv2d(4, 4, 3), x)


def test_a_plan_has_every_place_and_nothing_inside_what_is_swapped():
    shared = OREPAConv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Sequential(shared), shared, nn.Conv2d(4, 4, 1), DBBConv2d(4, 4, 3, padding=1)).eval()
    swaps = plan_swaps(model)
    assert [(swap.path, swap.name) for swap in swaps] == [('0.0', '0'), ('1', '1'), ('3', '3')]
    assert swaps[0].parent is model[0] and swaps[1].parent is swaps[2].parent is model
    assert swaps[0].new is swaps[1].new and swaps[0].old is swaps[1].old is shared and swaps[2].old is model[3]
