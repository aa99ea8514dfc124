"""The arithmetic by itself, against definitions written out in loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from orepa_mm.errors import LayerError
from orepa_mm.functional import (
    Branches,
    add_identity,
    average,
    closed_form_kxk,
    compose,
    frequency_prior,
    fuse_norm,
    kernel_of,
    merge_1x1_kxk,
    repvgg_l2,
    rows_of,
    shifts_and_kernel,
    squeeze_kxk,
)
from orepa_mm.functional.precision import in_float32, is_plain_eager, under_autocast, without_autocast
from orepa_mm.functional.separable import DepthwiseGradient, add_separable, pointwise_gradient


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and (actual - expected).abs().max().item() <= 1e-10 * expected.abs().max().item()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_repvgg_l2():
    """Only the centre is penalised as what it adds up to with the 1x1 kernel, in parts of the norms' scale."""
    kernel, point, a, b = draw(3, 2, 3, 3), draw(3, 2, 1, 1), draw(3), draw(3)
    expected = 0.0
    for o in range(3):
        for i in range(2):
            for y in range(3):
                for x in range(3):
                    if (y, x) == (1, 1):
                        merged = kernel[o, i, 1, 1] * a[o] + point[o, i, 0, 0] * b[o]
                        expected += merged**2 / (a[o] ** 2 + b[o] ** 2)
                    else:
                        expected += kernel[o, i, y, x] ** 2
    assert close(repvgg_l2(kernel, point, a, b), expected)


@pytest.mark.parametrize('channels', [1, 4, 5])
@pytest.mark.parametrize('size', [3, 5])
def test_frequency_prior(channels, size):
    prior = frequency_prior(channels, size, dtype=torch.float64)
    for c in range(channels):
        for y in range(size):
            for x in range(size):
                frequency, position = (c + 1, y) if c < channels / 2 else (c + 1 - channels / 2, x)
                assert prior[c, y, x].item() == pytest.approx(math.cos(math.pi * frequency * (position + 0.5) / size), abs=1e-12)
    assert frequency_prior(2, 3).dtype == torch.get_default_dtype()
    assert frequency_prior(2, 3, device='meta', dtype=torch.float16).device.type == 'meta'


@pytest.mark.parametrize(('size', 'inputs', 'groups'), [(5, 1, 1), (5, 2, 2), (7, 1, 2), (9, 2, 1), (11, 1, 1), (13, 1, 1), (15, 1, 1)])
def test_large_kernels_are_stacks_of_small_ones_bit_for_bit(size, inputs, groups):
    needed = math.ceil(size / 3) ** 2 * inputs
    weight = draw(groups * (needed + 1), inputs, size, size)
    first, *rest = shifts_and_kernel(weight, groups) if groups > 1 else shifts_and_kernel(weight)
    assert len(rest) == size // 2 - 1
    for stage in (first, *rest[:-1]):
        assert set(stage.unique().tolist()) <= {0.0, 1.0}
    whole = first
    for stage in rest:
        assert stage.shape == (len(weight), needed + 1, 3, 3)
        whole = compose(whole, stage, groups) if groups > 1 else compose(whole, stage)
    assert torch.equal(whole, weight)
    assert len(shifts_and_kernel(weight[: groups * needed], groups)) == size // 2
    with pytest.raises(LayerError, match=f'at least {needed * groups} output channels'):
        shifts_and_kernel(weight[: groups * (needed - 1)], groups)


@pytest.mark.parametrize('groups', [1, 2])
def test_merging_stacked_convolutions(groups):
    first, first_bias, second, second_bias = draw(6, 4 // groups, 1, 1), draw(6), draw(8, 6 // groups, 3, 3), draw(8)
    x = draw(2, 4, 7, 7)
    inner = F.conv2d(x, first, first_bias, groups=groups)
    kernel, bias = merge_1x1_kxk(first, first_bias, second, second_bias, **({'groups': groups} if groups > 1 else {}))
    assert close(F.conv2d(x, kernel, bias, groups=groups), F.conv2d(inner, second, second_bias, groups=groups))
    kernel, bias = average(first, first_bias, 3)
    assert close(F.conv2d(x, kernel, bias, groups=groups), F.avg_pool2d(inner, 3, 1))
    for copies in (1, 2):
        point = draw(copies * 4, 4 // groups, 1, 1)
        assert torch.equal(add_identity(point), point + nn.init.dirac_(torch.empty_like(point), copies * groups))


@pytest.mark.parametrize('bias', [None, 'drawn'])
@pytest.mark.parametrize('affine', [True, False])
def test_fusing_a_norm(bias, affine):
    weight, mean, variance, x = draw(4, 3, 3, 3), draw(4), draw(4).square(), draw(2, 3, 8, 8)
    bias = None if bias is None else draw(4)
    gamma, beta = (draw(4), draw(4)) if affine else (None, None)
    fused = fuse_norm(weight, bias, mean, variance, 1e-3, gamma, beta)
    assert close(F.conv2d(x, *fused), F.batch_norm(F.conv2d(x, weight, bias), mean, variance, gamma, beta, eps=1e-3))
    halves = [None if t is None else t.half() for t in (weight, bias, mean, variance, gamma, beta)]
    exact = [None if t is None else t.double() for t in halves]
    for half, whole in zip(fuse_norm(*halves[:4], 1e-3, *halves[4:]), fuse_norm(*exact[:4], 1e-3, *exact[4:]), strict=True):
        assert torch.equal(half, whole.half())  # rounded once


def test_rows():
    kernel = draw(3, 2, 5, 5)
    rows = rows_of(kernel)
    assert rows.shape == (3, 25, 2) and rows.is_contiguous()
    assert torch.equal(rows[:, 7], kernel[:, :, 1, 2]) and torch.equal(kernel_of(rows, 5), kernel)


def kxk_weights(groups: int, point: bool = True) -> list[torch.Tensor | None]:
    shapes = [(5 + point, 6), (6, 9, 4 // groups), (6, 4 // groups, 1, 1), (6, 4 // groups, 1, 1), (6, 3, 3), (8, 4 // groups, 1, 1)]
    shapes += [(6, 9, 8 // groups), (12, 1, 3, 3), (6, 12 // groups, 1, 1)]
    return [draw(*shape) for shape in shapes] + [draw(6, 4 // groups, 1, 1) if point else None]


def pointwise_weights(groups: int) -> list[torch.Tensor | None]:
    return [draw(2, 6), draw(6, 1, 4 // groups), None, None, None, draw(8, 4 // groups, 1, 1), draw(6, 1, 8 // groups), None, None, None]


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('kind', ['kxk', 'kxk without its 1x1 branch', '1x1'])
def test_closed_forms(kind, groups):
    """Kernel, gradients and gradients of gradients are those of autograd through the plain formula."""
    options = {} if groups == 1 else dict(groups=groups)
    weights = pointwise_weights(groups) if kind == '1x1' else kxk_weights(groups, kind == 'kxk')
    leaves = [w.requires_grad_() for i, w in enumerate(weights) if w is not None and not (i == 4 and kind != '1x1')]
    shape = (6, 4 // groups, *((1, 1) if kind == '1x1' else (3, 3)))
    forms = [lambda form=form: form(Branches(*weights), shape, **options) for form in (squeeze_kxk, closed_form_kxk)]
    direction = draw(*forms[0]().shape)

    def derivatives(form) -> list[torch.Tensor]:
        kernel = form()
        first = torch.autograd.grad((kernel * direction).sum(), leaves, retain_graph=True)
        second = torch.autograd.grad((kernel.square() * direction).sum(), leaves, create_graph=True)
        return [kernel, *first, *torch.autograd.grad(sum(g.square().sum() for g in second), leaves)]

    for a, e in zip(derivatives(forms[1]), derivatives(forms[0]), strict=True):
        assert close(a, e)


@pytest.mark.parametrize('create_graph', [False, True])
@pytest.mark.parametrize('kind', ['kxk', '1x1'])
def test_autocast_rounds_no_gradient(kind, create_graph):
    weights = [None if w is None else w.float() for w in (pointwise_weights(2) if kind == '1x1' else kxk_weights(2, True))]
    leaves = [w.requires_grad_() for i, w in enumerate(weights) if w is not None and not (i == 4 and kind != '1x1')]
    kernel = closed_form_kxk(Branches(*weights), (6, 2, *((1, 1) if kind == '1x1' else (3, 3))), groups=2)
    expected = torch.autograd.grad(kernel.square().sum(), leaves, retain_graph=True, create_graph=create_graph)
    with torch.autocast('cpu', torch.bfloat16):
        actual = torch.autograd.grad(kernel.square().sum(), leaves, create_graph=create_graph)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize('out_channels', [2, 21])
def test_separable_sums(out_channels):
    w, pointwise, depthwise = draw(2, out_channels, 9, 5), draw(2, out_channels, 18, 5), draw(2, 18, 9, 5)
    expected = w.clone()
    d_pointwise, d_depthwise = torch.zeros_like(pointwise), torch.zeros_like(depthwise)
    for o in range(out_channels):
        for e in range(18):
            expected[:, o] += pointwise[:, o, None, e] * depthwise[:, e]
            d_pointwise[:, o, e] = (w[:, o] * depthwise[:, e]).sum(1)
            d_depthwise[:, e] += w[:, o] * pointwise[:, o, None, e]
    gradient = DepthwiseGradient(depthwise, out_channels)
    for part in (slice(0, 18), slice(18, out_channels)):
        gradient.add(w[:, part], pointwise[:, part])
    assert close(gradient.total(), d_depthwise)
    assert close(pointwise_gradient(w, depthwise), d_pointwise) and pointwise_gradient(w, depthwise).is_contiguous()
    add_separable(w, pointwise, depthwise)
    assert close(w, expected)


def test_conditions():
    layer = torch.nn.Linear(2, 2).half()
    layer.register_forward_hook(lambda *_: None)
    exact = in_float32(layer)
    assert {p.dtype for p in exact.parameters()} == {torch.float32} and torch.equal(exact.weight, layer.weight.float())
    assert {p.dtype for p in layer.parameters()} == {torch.float16} and not exact._forward_hooks and len(layer._forward_hooks) == 1
    wide = torch.nn.BatchNorm2d(2).double()
    assert in_float32(wide) is wide

    x = torch.ones(2, 2)
    assert not under_autocast(x) and not under_autocast(x.to('meta'))
    with torch.autocast('cpu', torch.bfloat16):
        assert under_autocast(x) and (x @ x).dtype == torch.bfloat16
        with without_autocast(x):
            assert not under_autocast(x) and (x @ x).dtype == torch.float32
    with without_autocast('what torch.fx traces with'):
        pass

    class Special(torch.Tensor):
        pass

    assert is_plain_eager(x, None, torch.nn.Parameter(x)) and not is_plain_eager(x, x.as_subclass(Special))
    assert not torch.func.vmap(lambda row: row + is_plain_eager(row))(torch.zeros(2, 2)).any()
