"""Hypothesis strategies: layers with branches of every shape, and small networks of them."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from orepa_mm import DBBConv2d, OREPAConv2d
from orepa_mm.functional import BRANCHES

METHODS = ('OREPA', 'DBB', 'RepVGG')
FORMATS = (torch.contiguous_format, torch.channels_last)


def settle(model: nn.Module, harsh: bool = False) -> None:
    """Weights and norm statistics as after training: no branch at its start, where some are zero. Random numbers from torch's generator.

    Harsh: standard deviations from 0.01 to 100, every tenth channel without variance, every twentieth scaled to nothing.
    """
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value, low in ((norm.running_mean, -1), (norm.running_var, 0.5), (norm.weight.data, 0.5), (norm.bias.data, -1)):
                value.copy_(low + 1.5 * torch.rand_like(value))
            if harsh:
                norm.running_var.copy_(10 ** (8 * torch.rand_like(norm.running_var) - 4))
                norm.running_mean.mul_(norm.running_var.sqrt())
                norm.running_var[torch.rand_like(norm.running_var) < 0.1] = 0
                norm.weight.data[torch.rand_like(norm.running_var) < 0.05] = 0
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


# As OREPARepVGG builds them: the block has a 1x1 branch of its own.
IN_REPVGG = dict(type='OREPAConv2d', plain_sizes=(1,), branches=('origin', 'avg', 'freq', 'sequence', 'separable'))


def orepa_options(draw) -> dict:
    """Options of an OREPA layer beside those of a convolution; what else it can be built with belongs here."""
    others = st.lists(st.sampled_from(BRANCHES), max_size=5).map(lambda names: ('origin', *names))
    return dict(branches=draw(st.one_of(st.just('full'), st.just('light'), others)), plain_stages=draw(st.booleans()))


def repvgg_block(in_channels: int, out_channels: int, **options) -> nn.Module:
    from mmpretrain.models.backbones.repvgg import RepVGGBlock  # seconds to import

    return RepVGGBlock(in_channels, out_channels, **options)


pairs = st.one_of(st.integers(1, 2), st.tuples(st.integers(1, 3), st.integers(1, 3)))


# Older torch has no convolutions in float16 on a CPU.
HALF = (torch.float16, torch.bfloat16) if torch.__version__ >= '2.3' else (torch.bfloat16,)


@st.composite
def layers(draw, methods=METHODS, dtypes=(torch.float64, torch.float32)) -> tuple[nn.Module, Tensor]:
    """A layer in eval mode, its weights drawn at random, and an input for it."""
    method, dtype = draw(st.sampled_from(methods)), draw(st.sampled_from(dtypes))
    groups = draw(st.sampled_from((1, 1, 2, 3, 6)))
    channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    size = 3 if method == 'RepVGG' else draw(st.sampled_from((1, 3, 3, 5, 7, 9)))
    stride, dilation = draw(pairs), draw(pairs)
    padding = draw(st.one_of(st.integers(0, 4), st.tuples(st.integers(0, 4), st.integers(0, 4)), st.sampled_from(('same', 'valid'))))
    mode = draw(st.sampled_from(('zeros', 'zeros', 'reflect', 'replicate', 'circular')))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    steps = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    if method == 'OREPA':
        if padding == 'same':
            stride = 1
        shape = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, bias=draw(st.booleans()), padding_mode=mode)
        layer = OREPAConv2d(*channels, size, **shape, **orepa_options(draw))
        padding = {'same': tuple(step * (size // 2) for step in steps), 'valid': (0, 0)}.get(padding, padding)
    elif method == 'DBB':
        mode, more = 'zeros', draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
        padding = tuple(step * (size // 2) + extra for step, extra in zip(steps, more, strict=True))
        layer = DBBConv2d(*channels, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    else:
        mode, padding, steps, stride = 'zeros', 1, (1, 1), draw(st.integers(1, 2))
        conv_cfg = draw(st.sampled_from((None, IN_REPVGG)))
        layer = repvgg_block(*channels, stride=stride, groups=groups, conv_cfg=conv_cfg)
    # With one input channel torch's own convolution is wrong for some channels_last kernels and an output one column wide.
    layer = layer.to(dtype=dtype, memory_format=draw(st.sampled_from(FORMATS if channels[0] > 1 else FORMATS[:1]))).eval()
    settle(layer)
    padding = padding if isinstance(padding, tuple) else (padding, padding)
    # The smallest picture that there is an output for, and that the padding can be taken from.
    height, width = (
        max(step * (size - 1) + 1 - 2 * pad, 1 if mode in ('zeros', 'replicate') else pad + 1, 1) + draw(st.integers(0, 5))
        for step, pad in zip(steps, padding, strict=True)
    )
    x = torch.randn(draw(st.integers(1, 3)), channels[0], height, width, dtype=dtype)
    return layer, x.contiguous(memory_format=draw(st.sampled_from(FORMATS)))


CHANNELS = 4  # of all feature maps of a network
NAMES = ('conv1', 'bn1', 'conv2', 'bn2', 'relu', 'conv', 'norm', 'bn')


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Network(nn.Module):
    """Children under the usual names, called in any order, any number of times, with additions in between."""

    def __init__(self, children: list[nn.Module], order: list[tuple[int, str]], container: type[nn.Module]) -> None:
        super().__init__()
        self.order, self.names = order, NAMES[: len(children)]
        named = dict(zip(self.names, children, strict=True))
        if container is nn.Module:
            for name, child in named.items():
                self.add_module(name, child)
        else:
            self.layers = container(named if container is nn.ModuleDict else children)

    def child(self, index: int) -> nn.Module:
        name = self.names[index % len(self.names)]
        if not hasattr(self, 'layers'):
            return getattr(self, name)
        return self.layers[name if isinstance(self.layers, nn.ModuleDict) else index % len(self.names)]

    def forward(self, x):
        for index, way in self.order:
            child = self.child(index)
            y = child(x)
            if way == 'keep':
                continue
            x = y if way == 'replace' else y + x if way == 'add' else child(y)
            x = x / x.detach().abs().max().clamp_min(1)  # no growth, so rounding stays rounding
        return x


def _same_size(draw) -> dict:
    """Of a convolution that keeps the size of its input."""
    size, dilation = draw(st.sampled_from((1, 3, 3, 5, 7))), draw(st.integers(1, 2))
    return dict(kernel_size=size, dilation=dilation, padding=dilation * (size // 2), groups=draw(st.sampled_from((1, 2))))


@st.composite
def _children(draw) -> nn.Module:
    kind = draw(st.sampled_from(('OREPA', 'OREPA', 'OREPA', 'plain', 'DBB', 'RepVGG', 'norm', 'norm', 'relu', 'nested')))
    if kind in ('OREPA', 'plain'):
        shape = _same_size(draw) | dict(bias=draw(st.booleans()), padding_mode=draw(st.sampled_from(('zeros', 'zeros', 'replicate'))))
        return (
            OREPAConv2d(CHANNELS, CHANNELS, **shape, **orepa_options(draw)) if kind == 'OREPA' else nn.Conv2d(CHANNELS, CHANNELS, **shape)
        )
    if kind == 'DBB':
        return DBBConv2d(CHANNELS, CHANNELS, **_same_size(draw))
    if kind == 'RepVGG':
        conv_cfg = draw(st.sampled_from((None, IN_REPVGG)))
        return repvgg_block(CHANNELS, CHANNELS, conv_cfg=conv_cfg)
    if kind == 'norm':
        return draw(st.sampled_from((nn.BatchNorm2d, ActivatedNorm)))(CHANNELS)
    if kind == 'nested':
        return nn.Sequential(*draw(st.lists(_children(), min_size=1, max_size=2)))
    return nn.ReLU()


steps = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(('replace', 'add', 'twice', 'keep'))), min_size=1, max_size=8)
containers = st.sampled_from((nn.Module, nn.ModuleList, nn.ModuleDict))


@st.composite
def networks(draw, dtypes=(torch.float64,), harsh=False) -> tuple[nn.Module, Tensor]:
    """A network in eval mode with layers with branches, containers, shared modules and residuals, and an input for it."""
    dtype = draw(st.sampled_from(dtypes))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    children = [OREPAConv2d(CHANNELS, CHANNELS, 3, padding=1), *draw(st.lists(_children(), min_size=1, max_size=5))]
    if draw(st.booleans()):
        children.append(children[draw(st.integers(0, len(children) - 1))])  # shared under two names
    model = Network(children, draw(steps), draw(containers))
    if draw(st.booleans()):
        model = nn.Sequential(model, Network([model, *children[1:]], draw(steps), draw(containers)))
    model = model.to(dtype=dtype, memory_format=draw(st.sampled_from(FORMATS))).eval()
    settle(model, harsh)
    return model, torch.randn(2, CHANNELS, 7, 6, dtype=dtype)
