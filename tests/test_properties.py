"""Re-parameterizing never changes what a network computes, whatever the network: random ones by hypothesis."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_layers import networks
from torch import nn

from orepa_mm import DBBConv2d, expand, reparameterize, reparameterized
from orepa_mm.errors import FuseError
from orepa_mm.layers import ReparameterizableConv2d


def is_block(module: nn.Module) -> bool:
    """With norms of its own, which fold in eval mode only."""
    return isinstance(module, DBBConv2d) or hasattr(module, 'branch_3x3')


def has_branches(model: nn.Module) -> bool:
    return any(isinstance(m, ReparameterizableConv2d) or is_block(m) for m in model.modules())


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # float64 through a dozen layers; norms by batch statistics amplify rounding
    assert (actual - expected).abs().max() <= 1e-9 * expected.abs().max().clamp_min(1e-3)


@given(networks(), st.booleans())
def test_random_networks(case, training):
    model, x = case
    blocks = [m for m in model.modules() if is_block(m)]
    if training and blocks:
        before = [id(m) for m in model.modules()]
        with pytest.raises(FuseError, match='training mode'):
            reparameterize(model.train())
        assert before == [id(m) for m in model.modules()]
    model.train(training and not blocks)

    def run(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        y = copy.deepcopy(network)(leaf)  # a copy: batch norms move their statistics
        return y, torch.autograd.grad(y.square().sum(), leaf, allow_unused=True, materialize_grads=True)[0]

    expected, gradient = run(model)
    twin = copy.deepcopy(model)
    for value in twin.state_dict().values():
        value.zero_()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(run(twin)[0], expected)

    before = [id(m) for m in model.modules()]
    with reparameterized(model):
        assert not has_branches(model)
        assert_same(run(model)[0], expected)
    assert before == [id(m) for m in model.modules()]

    reparameterize(model)
    assert not has_branches(model)
    y, plain_gradient = run(model)
    assert_same(y, expected)
    assert_same(plain_gradient, gradient)

    plain = copy.deepcopy(model.state_dict())
    expand(model)
    y, expanded_gradient = run(model)
    assert_same(y, expected)
    assert_same(expanded_gradient, gradient)
    reparameterize(model)
    assert model.state_dict().keys() == plain.keys()
    for key, value in model.state_dict().items():
        assert_same(value, plain[key])
