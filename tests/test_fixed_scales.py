"""With fixed scales SGD on a plain weight, its gradient times a matrix, goes where SGD on linear branches goes."""

import copy
from functools import partial

import pytest
import torch
from conftest import fused
from mmpretrain.registry import MODELS
from test_attach_branches import EXACT, apart, batches, loss_of, train
from torch import Tensor, nn

from orepa_mm import OREPAConv2d, attach_branches
from orepa_mm.checkpoints.checking import check_state_dict
from orepa_mm.checkpoints.stem import squeeze_stem
from orepa_mm.functional import gradient_matrix, multiply_taps
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.optim.attached import AttachedBranches
from orepa_mm.optim.updates import BranchUpdate, MatrixUpdate


def network() -> nn.Sequential:
    """Every kind of layer with linear branches, with random scales and no branch at zero."""
    torch.manual_seed(0)
    options = dict(dtype=torch.float64, branches='light')
    model = nn.Sequential(
        OREPAConv2d(3, 6, 7, 2, 3, **options),
        nn.Tanh(),
        OREPAConv2d(6, 4, 3, 1, 1, groups=2, **options),
        nn.Tanh(),
        OREPAConv2d(4, 6, 5, 1, 2, bias=False, **options | dict(branches=('origin', 'freq', 'point'))),
        nn.Tanh(),
        OREPAConv2d(6, 4, 1, **options),
        OREPAConv2d(4, 4, 3, bias=False, **options | dict(branches=('avg', 'point'))),
    )
    for name, parameter in model.named_parameters():
        if name.endswith('scale'):
            nn.init.uniform_(parameter, 0.2, 0.9)
    return model


def inside() -> nn.Sequential:
    """With branches in it whose scales are frozen."""
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith('scale'))
    return model


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    kind = partial(fused, torch.optim.SGD) if options.pop('fused', False) else torch.optim.SGD
    return kind(model.parameters(), **dict(lr=0.1) | options)


def beside(optimizer_of=sgd, **options):
    """The plain network, its optimizer, and the same branches beside that."""
    model = network()
    optimizer = optimizer_of(model, **options)
    return model, optimizer, attach_branches(model, optimizer, scales='fixed')


def kinds(handle: AttachedBranches) -> list[type]:
    return [type(update) for update in handle.updates]


# The same training


@pytest.mark.parametrize(
    'options',
    [
        dict(momentum=0.9, nesterov=True, weight_decay=1e-2),
        dict(momentum=0.8, dampening=0.5, weight_decay=1e-3, maximize=True, lr=1e-3),
        dict(momentum=0.9, weight_decay=1e-2, fused=True),
    ],
    ids=str,
)
def test_fifty_steps_are_those_of_branches_in_the_model(options):
    branches, (plain, optimizer, handle) = inside(), beside(**options)
    assert kinds(handle) == [BranchUpdate, *[MatrixUpdate] * 4]  # the stem is a product
    before = copy.deepcopy(plain)
    train(branches, sgd(branches, **options), batches(50))
    train(plain, optimizer, batches(50))
    assert apart(before, plain) > 1e-3
    assert apart(branches, plain) < EXACT


def test_gradients_stay_the_plain_ones():
    """The matrix is for the step: what is clipped before, and added to afterwards, is the plain gradient."""
    model, optimizer, _ = beside()
    loss_of(model, batches(1)[0]).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), plain, strict=True))


def test_a_bfloat16_weight_takes_the_product_rounded_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).bfloat16()
    plain = copy.deepcopy(model)
    optimizer = sgd(model)
    (update,) = attach_branches(model, optimizer, branches='light', scales='fixed').updates
    assert type(update) is MatrixUpdate and update.matrix.dtype == torch.float32
    model[0].weight.grad = torch.randn_like(model[0].weight)
    plain[0].weight.grad = multiply_taps(model[0].weight.grad.float(), update.matrix).bfloat16()
    optimizer.step()
    sgd(plain).step()
    assert torch.equal(model[0].weight, plain[0].weight)


class MySGD(torch.optim.SGD):
    """It may do anything."""


def test_what_the_matrix_does_not_commute_with_takes_the_branches_themselves():
    def adamw(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    branches, (plain, optimizer, handle) = inside(), beside(adamw)
    assert kinds(handle) == [BranchUpdate] * 5
    scales = [p.clone() for update in handle.updates for name, p in update.kernel.named_parameters() if name.endswith('scale')]
    train(branches, adamw(branches), batches(20))
    train(plain, optimizer, batches(20))
    assert apart(branches, plain) < 1e-7  # rounding, in Adam
    after = [p for update in handle.updates for name, p in update.kernel.named_parameters() if name.endswith('scale')]
    assert all(torch.equal(a, b) for a, b in zip(scales, after, strict=True))
    assert kinds(beside(lambda model: MySGD(model.parameters(), lr=0.1))[2]) == [BranchUpdate] * 5
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
    assert kinds(attach_branches(model, sgd(model), scales='fixed')) == [BranchUpdate] * 2  # products of weights


# The arithmetic


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_the_matrix_is_that_of_the_branches(kernel_size):
    """What a step on their weights does to the kernel: the kernel's derivatives by the weights, times themselves transposed."""
    options = dict(branches='light', dtype=torch.float64)
    kernel = OREPAKernel(2, 3, kernel_size, **options)
    nn.init.uniform_(kernel.scale, 0.2, 0.9)
    weights = {name: p.detach() for name, p in kernel.named_parameters() if name != 'scale'}
    found = torch.func.jacrev(lambda weights: torch.func.functional_call(kernel, weights, ()))(weights)
    derivatives = torch.cat([each.reshape(3, 2, kernel_size**2, -1) for each in found.values()], -1)
    expected = derivatives @ derivatives.mT
    rows = dict(zip(kernel.branches, kernel.scale, strict=True))
    matrix = gradient_matrix(rows, kernel_size)
    for channel in range(2):
        assert (matrix - expected[:, channel]).abs().max() < EXACT


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', [(6, 4, 3, 3), (6, 1, 3, 3), (6, 4, 1, 1)])
def test_taps_of_each_channel(shape, memory_format):
    kernel, taps = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format), shape[2] * shape[3]
    matrix = torch.randn(6, taps, taps, dtype=torch.float64)
    matrix = matrix + matrix.mT
    expected = torch.einsum('opq,oiq->oip', matrix, kernel.flatten(2)).view(shape)
    found = multiply_taps(kernel, matrix)
    assert (found - expected).abs().max() < EXACT and found.is_contiguous(memory_format=memory_format)


def test_autocast_leaves_the_product_in_float32():
    g, matrix = torch.randn(8, 4, 3, 3), torch.randn(8, 9, 9)
    expected = multiply_taps(g, matrix)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(multiply_taps(g, matrix), expected)


# Files of runs that kept the plain kernels' matrices in the model


def with_matrices(conv: nn.Module) -> dict[str, Tensor]:
    taps = conv.weight[0, 0].numel()
    return dict(conv.state_dict(), gradient_matrix=torch.randn(len(conv.weight), taps, taps))


def test_a_file_with_matrices_loads_into_layers_with_branches_and_plain_ones():
    conv = nn.Conv2d(4, 6, 3)
    layer, plain = OREPAConv2d(4, 6, 3), nn.Sequential(nn.Conv2d(4, 6, 3))
    layer.load_state_dict(with_matrices(conv))
    assert (layer.weight - conv.weight).abs().max() < 1e-6 and torch.equal(layer.bias, conv.bias)
    state = {f'0.{key}': value for key, value in with_matrices(conv).items()}
    check_state_dict(plain, state, 'the checkpoint', strict=True)
    plain.load_state_dict(state, strict=False)
    assert torch.equal(plain[0].weight, conv.weight)


def test_a_deep_stem_with_matrices_loads_as_branches_as_plain_stages_and_as_a_plain_kernel():
    options = dict(type='OREPAResNet', depth=18, stem_channels=32, base_channels=8)
    plain = MODELS.build(dict(options, method='none'))
    stem = OREPAConv2d(3, 32, 7, 2, 3, bias=False, plain_stages=True)
    state = {key: value for key, value in plain.state_dict().items() if key != 'conv1.weight'}
    for path, conv in plain.named_modules():
        if isinstance(conv, nn.Conv2d) and path != 'conv1':
            state |= {f'{path}.{key}': value for key, value in with_matrices(conv).items()}
    for index, stage in enumerate(stem.kernel.stages):
        state |= {f'conv1.kernel.stages.{index}.{key}': value for key, value in with_matrices(stage).items()}
    for form in (dict(branches='light'), dict(), dict(plain_stem=True)):
        net = MODELS.build(dict(options, **form))
        check_state_dict(net, state, 'the checkpoint', strict=True)
        net.load_state_dict(state, strict=False)
        assert (net.conv1.weight - stem.weight).abs().max() < 1e-5 * stem.weight.abs().max()
        assert (net.layer1[0].conv1.weight - plain.layer1[0].conv1.weight).abs().max() < 1e-6
    assert squeeze_stem(state) and not any(key.startswith('conv1.kernel') for key in state)
    check_state_dict(plain, state, 'the checkpoint', strict=True)
    plain.load_state_dict(state, strict=False)
    assert (plain.conv1.weight - stem.weight).abs().max() < 1e-6
