"""Run by test_gpu_programs.py with TRITON_INTERPRET=1: the GPU's programs, carried out in Python on the CPU, against autograd."""

import copy
import itertools
from unittest.mock import Mock

import torch
from torch import nn

from orepa_mm.functional import closed_form, triton_squeeze
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.reparam.comparison import largest_difference

torch.manual_seed(0)
triton_squeeze.BLOCK, triton_squeeze.CHUNK = 4, 4  # so that small layers take several


def kernel_and_gradients(kernel: nn.Module, memory_format: torch.memory_format, strided: bool) -> list[torch.Tensor]:
    squeezed = kernel(memory_format)
    assert squeezed.is_contiguous(memory_format=memory_format)
    weights = torch.randn(squeezed.shape[::-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).permute(3, 2, 1, 0)
    weights = (weights if strided else weights.contiguous()).to(squeezed.dtype)
    return [squeezed.detach(), *torch.autograd.grad(squeezed, list(kernel.parameters()), weights)]


def check(kernel: nn.Module, memory_format: torch.memory_format = torch.channels_last, strided: bool = False) -> None:
    for parameter in kernel.parameters():
        nn.init.normal_(parameter)
    exact = copy.deepcopy(kernel).double()
    exact.closed_form = False
    dtype = next(kernel.parameters()).dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3}[dtype]  # half: products and results are rounded to 11 bits
    found = kernel_and_gradients(kernel, memory_format, strided)
    difference = largest_difference(kernel_and_gradients(exact, memory_format, strided), found)
    assert difference < tolerance, f'{kernel}, {memory_format}: {difference:.1e}'
    calls = programs.squeeze_into.call_count, programs.gradient.call_count
    assert calls == (1, 1), f'{kernel}: the programs were called {calls} times'
    programs.reset_mock()


programs = Mock(wraps=triton_squeeze)  # counts its calls
closed_form.programs_for = lambda device: programs
subsets = ['full', 'light', ('origin',), ('sequence', 'point'), ('avg', 'separable'), ('freq', 'origin')]
for branches, groups in [*zip(subsets, itertools.cycle((1, 2))), ('full', 2)]:
    check(OREPAKernel(6, 4, 3, groups=groups, branches=branches, dtype=torch.float64))
check(OREPAKernel(3, 5, 5, dtype=torch.float64))
check(OREPAKernel(6, 4, 3, dtype=torch.float64), torch.contiguous_format, strided=True)
check(OREPAKernel(6, 4, 3))
check(OREPAKernel(6, 4, 3, dtype=torch.float16))
for groups in (1, 2):
    check(OREPAKernel(6, 10, 1, groups=groups, dtype=torch.float64))
check(OREPAKernel(10, 6, 1), torch.contiguous_format, strided=True)
print('equal')
