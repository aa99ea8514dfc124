"""Re-parameterizing never changes what a module computes, whatever the module: random modules by hypothesis."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from orepa_mm import OREPAConv2d, reparameterize, reparameterized
from orepa_mm.layers import ReparameterizableConv2d

CHANNELS = 4


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def conv(size: int, groups: int, bias: bool) -> OREPAConv2d:
    return OREPAConv2d(CHANNELS, CHANNELS, size, padding=size // 2, groups=groups, bias=bias, dtype=torch.float64)


convs = st.builds(conv, st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2]), st.booleans())
others = st.sampled_from([nn.BatchNorm2d, nn.BatchNorm2d, ActivatedNorm, nn.ReLU, nn.Identity]).map(
    lambda kind: kind(CHANNELS) if issubclass(kind, nn.BatchNorm2d) else kind()
)
steps = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(['replace', 'add', 'twice', 'keep'])), min_size=1, max_size=8)
NAMES = ('conv1', 'bn1', 'conv2', 'bn2', 'relu', 'conv', 'norm', 'bn')


class Random(nn.Module):
    """Children under the usual names, called in any order, any number of times, with additions in between."""

    def __init__(self, children: list[nn.Module], order: list[tuple[int, str]], nested: bool) -> None:
        super().__init__()
        self.order = order
        self.called = children if nested else None  # indexed from outside, past the container's own forward
        if nested:
            self.layers = nn.Sequential(*children)
        else:
            for name, child in zip(NAMES, children, strict=False):
                self.add_module(name, child)
        self.names = NAMES[: len(children)]

    def forward(self, x):
        for index, way in self.order:
            index %= len(self.names)
            child = self.layers[index] if self.called is not None else getattr(self, self.names[index])
            y = child(x)
            if way == 'keep':
                continue
            x = y if way == 'replace' else y + x if way == 'add' else child(y)
            x = x / x.detach().abs().max().clamp_min(1)  # no growth, so rounding stays rounding
        return x


@st.composite
def modules(draw) -> nn.Module:
    children = draw(st.lists(st.one_of(convs, convs, others), min_size=2, max_size=6))
    if draw(st.booleans()):
        children.append(children[0])  # shared under two names
    model = Random(children, draw(steps), draw(st.booleans()))
    model = nn.Sequential(model, Random([model, *children[1:]], draw(steps), False)) if draw(st.booleans()) else model
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.double()
            for value, low in ((module.running_mean, -1), (module.running_var, 0.5), (module.weight.data, 0.5), (module.bias.data, -1)):
                value.copy_(low + 1.5 * torch.rand(value.shape, generator=generator, dtype=torch.float64))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.train(draw(st.booleans()))


def check(model: nn.Module) -> None:
    x = torch.randn(2, CHANNELS, 7, 6, dtype=torch.float64)
    reference, again = copy.deepcopy(model), copy.deepcopy(model)
    expected = reference(x)
    scale = expected.abs().max().clamp_min(1e-3)
    ids = [id(module) for module in again.modules()]
    with reparameterized(again):
        # 1e-10 of the scale: float64 through a dozen layers; norms by batch statistics amplify rounding
        assert (again(x) - expected).abs().max() <= 1e-9 * scale
    assert ids == [id(module) for module in again.modules()]
    reparameterize(model)
    assert not any(isinstance(module, ReparameterizableConv2d) for module in model.modules())
    assert (model(x) - expected).abs().max() <= 1e-9 * scale


quick = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(max_examples=150, **quick)
@given(modules())
def test_random_modules(model):
    check(model)


@pytest.mark.slow
@settings(max_examples=3000, **quick)
@given(modules())
def test_many_random_modules(model):
    check(model)
