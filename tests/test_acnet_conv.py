"""ACNetConv2d: the published block's arithmetic, and one convolution for it."""

import pytest
import torch
from torch import nn

from orepa_mm import reparameterize
from orepa_mm.errors import LayerError
from orepa_mm.layers import ACNetConv2d

FORMS = {
    '3x3': dict(kernel_size=3, padding=1),
    'strided': dict(kernel_size=3, padding=1, stride=2),
    'grouped': dict(kernel_size=3, padding=1, groups=2),
    '5x5': dict(kernel_size=5, padding=2),
    'wide padding': dict(kernel_size=3, padding=(2, 1)),
    'dilated': dict(kernel_size=3, padding=(2, 1), dilation=(2, 1)),
    '1x1': dict(kernel_size=1),
}


def settled(form: str) -> ACNetConv2d:
    """A layer whose norms have weights and statistics of their own; float64."""
    layer = ACNetConv2d(4, 6, **FORMS[form], dtype=torch.float64)
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return layer


def relative(actual, expected) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def branch_by_branch(layer: ACNetConv2d, form: str, x: torch.Tensor) -> torch.Tensor:
    """Three of torch's own convolutions, each with its norm, summed (paper, figure 1).

    Where the padding is wider than keeps the size, a 1 x k or k x 1 kernel is centred in the k x k one: the rest of the padding stays.
    """
    options = dict(FORMS[form])
    k, padding, dilation = options.pop('kernel_size'), options.pop('padding', 0), options.get('dilation', 1)
    height, width = padding if isinstance(padding, tuple) else (padding, padding)
    steps = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    shapes = dict(origin=((k, k), (height, width)))
    if k > 1:
        shapes['horizontal'] = (1, k), (height - steps[0] * (k // 2), width)
        shapes['vertical'] = (k, 1), (height, width - steps[1] * (k // 2))
    y = 0
    for name, (size, pad) in shapes.items():
        conv = nn.Conv2d(4, 6, size, padding=pad, bias=False, dtype=torch.float64, **options)
        conv.weight = getattr(layer, name).weight
        y = y + getattr(layer, f'{name}_norm')(conv(x))
    return y


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_the_sum_of_the_branches(form, training):
    layer = settled(form).train(training)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert relative(layer(x), branch_by_branch(layer, form, x)) < 1e-10


@pytest.mark.parametrize('form', FORMS)
def test_one_convolution_equals_the_branches(form):
    layer = settled(form).eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = layer(x)
    plain = reparameterize(layer)
    assert type(plain) is nn.Conv2d and relative(plain(x), expected) < 1e-10


def test_every_parameter_learns():
    layer = settled('3x3')
    layer(torch.randn(4, 4, 9, 8, dtype=torch.float64)).pow(3).sum().backward()
    assert len(list(layer.parameters())) == 9 and all(p.grad.abs().max() > 0 for p in layer.parameters())


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(kernel_size=2), 'odd'),
        (dict(kernel_size=3), r'ACNetConv2d needs a padding of at least \(1, 1\)'),
        (dict(kernel_size=3, padding=1, padding_mode='reflect'), 'reflect'),
        (dict(kernel_size=3, padding=1, norm_cfg=dict(type='GN')), "'GN'"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(LayerError, match=message):
        ACNetConv2d(4, 6, **kwargs)
