"""DBBConv2d as a layer."""

import copy
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from plain_formula import written_out
from torch import nn

from orepa_mm import DBBConv2d, reparameterize
from orepa_mm.errors import FuseError, LayerError
from orepa_mm.layers.dbb_conv import _pad

FORMS = {
    '3x3': dict(kernel_size=3, padding=1),
    'strided': dict(kernel_size=3, padding=1, stride=2),
    'grouped': dict(kernel_size=3, padding=1, groups=2),
    '5x5': dict(kernel_size=5, padding=2),
    'wide padding': dict(kernel_size=3, padding=2),
    'dilated': dict(kernel_size=3, padding=2, dilation=2),
    '1x1': dict(kernel_size=1),
}


def settled(form: str) -> DBBConv2d:
    """A block after some training steps, so that its norms have statistics of their own; float64."""
    block = DBBConv2d(4, 6, **FORMS[form], dtype=torch.float64)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        block(2 * torch.randn(4, 4, 9, 8, dtype=torch.float64) + 1).square().mean().backward()
        optimizer.step()
    return block


@pytest.mark.parametrize('form', FORMS)
def test_one_convolution_equals_the_branches(form):
    block = settled(form).eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = block(x)
    plain = reparameterize(block)
    assert type(plain) is nn.Conv2d
    assert ((plain(x) - expected).abs().max() / expected.abs().max()).item() < 1e-10


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_gradients_are_those_of_the_published_formula(form, training):
    block, x = settled(form).train(training), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    found, expected = (torch.autograd.grad(y.sin().sum(), list(block.parameters())) for y in (block(x), written_out(block, x)))
    for (name, _), a, b in zip(block.named_parameters(), found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(g.abs().max() for g in expected), name


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_padding_leaves_the_inside_as_it_is(dtype):
    norm, x = settled('3x3').avg_norm1.to(dtype), torch.randn(2, 6, 9, 8, dtype=dtype)
    nn.init.constant_(norm.bias, 100)
    assert torch.equal(_pad(x, norm, (2, 1))[:, :, 2:-2, 1:-1], x)


@pytest.mark.parametrize('form', FORMS)
def test_every_parameter_learns(form):
    block = settled(form)
    block(torch.randn(4, 4, 9, 8, dtype=torch.float64)).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())


def test_copies_give_the_same_outputs():
    block = settled('3x3').eval()
    x = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(block)(x), block(x))
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), block(x))


def test_training_mode_cannot_be_folded():
    for model, path in ((nn.Sequential(settled('3x3')), '0'), (settled('3x3'), 'DBBConv2d')):
        with pytest.raises(FuseError, match=rf'"{path}\.origin_norm" inside a DBBConv2d is in training mode'):
            reparameterize(model)


def test_weight_and_bias_describe_the_layer_in_eval_mode():
    """mmcv's efficient_conv_bn_eval computes with a convolution's weight and bias."""
    module = ConvModule(4, 6, 3, padding=1, conv_cfg=dict(type='DBBConv2d'), norm_cfg=dict(type='BN')).double()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    module.eval()
    x = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    expected = module(x)
    module.turn_on_efficient_conv_bn_eval()
    assert ((module(x) - expected).abs().max() / expected.abs().max()).item() < 1e-10
    assert list(module.conv.state_dict()) == list(DBBConv2d(4, 6, 3, padding=1).state_dict())


def test_registered_as_a_convolution_layer():
    conv = build_conv_layer(dict(type='DBBConv2d', norm_cfg=dict(type='SyncBN')), 4, 6, 3, padding=1, bias=False)
    assert type(conv) is DBBConv2d and type(conv.origin_norm) is nn.SyncBatchNorm
    assert type(DBBConv2d(4, 6, 1, norm_cfg=dict(type=nn.SyncBatchNorm)).origin_norm) is nn.SyncBatchNorm
    plain = build_conv_layer(dict(type='DBBConv2d', plain_sizes=(1, 7), norm_cfg=dict(type='BN')), 4, 6, kernel_size=7, bias=False)
    assert type(plain) is nn.Conv2d and plain.bias is None


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(kernel_size=2), 'odd'),
        (dict(kernel_size=3), r'padding of at least \(1, 1\)'),
        (dict(kernel_size=3, padding=1, dilation=2), r'padding of at least \(2, 2\)'),
        (dict(kernel_size=3, padding=1, padding_mode='reflect'), 'reflect'),
        (dict(kernel_size=3, padding=1, norm_cfg=dict(type='GN')), "'GN'"),
        (dict(kernel_size=3, padding=1, norm_cfg=dict(type='BN', track_running_stats=False)), 'running statistics'),
        (dict(kernel_size=3, padding=1, groups=4), 'divisible by groups'),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(LayerError, match=message):
        DBBConv2d(4, 6, **kwargs)
