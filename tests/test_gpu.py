"""On a GPU: squeezing, which takes another path there, mixed precision on each toolbox, and equality where convolutions round to TF32."""

import copy
import json
import math

import pytest
import torch
from mmpretrain.registry import MODELS
from test_tools import METRIC, SCOPES
from torch import nn

import orepa_mm
from orepa_mm import OREPAConv2d
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.reparam.comparison import largest_difference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='asks for a GPU')
KERNELS = {
    'full': lambda **options: OREPAKernel(32, 48, 3, **options),
    'full, 5x5': lambda **options: OREPAKernel(16, 16, 5, **options),
    'full, groups': lambda **options: OREPAKernel(32, 48, 3, groups=8, **options),
    'light': lambda **options: OREPAKernel(32, 48, 3, branches='light', **options),
    '1x1': lambda **options: OREPAKernel(32, 48, 1, **options),
    '1x1, groups': lambda **options: OREPAKernel(32, 48, 1, groups=4, **options),
}


def draw(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def kernel_and_gradients(kernel: nn.Module, memory_format: torch.memory_format) -> list[torch.Tensor]:
    squeezed = kernel(memory_format)
    assert squeezed.is_contiguous(memory_format=memory_format)
    # Drawn on the CPU, so that it is the same on both.
    weights = torch.randn(squeezed.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(squeezed)
    return [squeezed.detach(), *torch.autograd.grad((squeezed * weights).sum(), list(kernel.parameters()))]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', KERNELS)
def test_squeezing_is_the_plain_formula_and_that_of_the_cpu(name, memory_format):
    kernel = draw(KERNELS[name](dtype=torch.float64, device='cuda'))
    plain = copy.deepcopy(kernel)
    plain.closed_form = False
    found = kernel_and_gradients(kernel, memory_format)
    assert largest_difference(kernel_and_gradients(plain, memory_format), found) < 1e-10
    on_cpu = kernel_and_gradients(copy.deepcopy(kernel).cpu(), memory_format)
    assert largest_difference(on_cpu, [each.cpu() for each in found]) < 1e-10


@pytest.mark.parametrize('name', KERNELS)
def test_squeezing_stays_in_float32_under_autocast(name):
    kernel = draw(KERNELS[name](device='cuda'))
    exact = kernel_and_gradients(copy.deepcopy(kernel).double(), torch.channels_last)
    with torch.autocast('cuda', torch.bfloat16):
        found = kernel_and_gradients(kernel, torch.channels_last)
    assert {each.dtype for each in found} == {torch.float32}
    assert largest_difference(exact, found) < 1e-5


@pytest.mark.parametrize(('tf32', 'tolerance'), [(False, 1e-5), (True, 1e-3)])
def test_reparameterized_network(tf32, tolerance):
    """Where convolutions may round to TF32, with 11 bits, both forms do."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        model, x = MODELS.build(dict(type='OREPAResNet', depth=18)).cuda(), torch.randn(2, 3, 64, 64, device='cuda')
        model.eval()
        with torch.no_grad():
            before = model(x)
            after = orepa_mm.reparameterize(model)(x)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    # A network of 20 layers adds up the rounding of each.
    assert largest_difference(before, after) < 20 * tolerance


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_fixed_scales_step_as_branches_in_the_model(dtype):
    """Under autocast the gradients are half precision's, of the same numbers in both."""
    branches = OREPAConv2d(16, 16, 3, branches='light', bias=False).cuda()
    plain = nn.Sequential(copy.deepcopy(branches))
    branches.kernel.scale.requires_grad_(False)
    x = torch.randn(4, 16, 12, 12, device='cuda')
    for model in (branches, plain):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9, fused=True)
        if model is plain:
            orepa_mm.attach_branches(model, optimizer, scales='fixed')
        for _ in range(5):
            with torch.autocast('cuda', dtype):
                loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert largest_difference(branches(x), plain(x)) < 5 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ('name', 'options'),
    # mmcv's RoIAlign knows no bfloat16.
    [*((name, {}) for name in SCOPES), *((name, {'optim_wrapper.dtype': 'bfloat16'}) for name in SCOPES if name != 'coco')],
)
def test_mixed_precision_training_and_both_forms(name, options, tools, tmp_path):
    status, error = tools.train(name, tmp_path, '--amp', options=options)
    assert status == 0, error
    log = next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()
    losses = [entry['loss'] for entry in map(json.loads, log) if 'loss' in entry]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    metrics = []
    for form in ('--reparameterize', '--no-reparameterize'):
        path = tmp_path / f'{form}.json'
        status, error = tools.test(name, tmp_path / 'last.pth', tmp_path / form, form, '--metrics', path)
        assert status == 0, error
        metrics.append(json.loads(path.read_text()))
    assert metrics[0][METRIC[name]] == pytest.approx(metrics[1][METRIC[name]], abs=2e-2)
