"""Squeezing in a few launches, which a GPU does: the same programs interpreted on the CPU, and where they cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import needs_torch
from torch import nn

from orepa_mm.functional import Branches, closed_form, gpu, squeeze_kxk
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.reparam.comparison import largest_difference


def test_the_programs_give_the_plain_formulas_numbers():
    pytest.importorskip('triton')
    needs_torch('2.6', 'a Triton that these programs were written for')
    script = Path(__file__).parent / 'interpreted_triton.py'
    # A process of its own: what Triton offers is for its compiler or its interpreter from the first import on.
    done = subprocess.run([sys.executable, script], env=dict(os.environ, TRITON_INTERPRET='1'), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'equal\n'), done.stderr


class PlainFormula:
    """Takes the programs' place: what they are given, by the plain formula and autograd."""

    calls = 0

    def squeeze_into(self, kernel: torch.Tensor, branches: Branches, groups: int) -> None:
        self.calls += 1
        kernel.copy_(squeeze_kxk(branches, tuple(kernel.shape), groups))

    def gradient(self, grad: torch.Tensor, branches: Branches, groups: int) -> Branches:
        self.calls += 1
        leaves = {
            name: weight.detach().requires_grad_() for name, weight in branches._asdict().items() if weight is not None and name != 'prior'
        }
        with torch.enable_grad():
            kernel = squeeze_kxk(Branches(**leaves, prior=branches.prior), tuple(grad.shape), groups)
            return Branches(**dict(zip(leaves, torch.autograd.grad(kernel, list(leaves.values()), grad), strict=True)))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('kernel_size', [3, 1])
def test_layers_hand_their_branches_to_the_programs(kernel_size, groups, memory_format, monkeypatch):
    """The programs themselves are tested above."""
    kernel = OREPAKernel(6, 4, kernel_size, groups=groups, dtype=torch.float64)
    for parameter in kernel.parameters():
        nn.init.normal_(parameter)

    def squeezed_and_gradients() -> list[torch.Tensor]:
        squeezed = kernel(memory_format)
        assert squeezed.is_contiguous(memory_format=memory_format)
        return [squeezed, *torch.autograd.grad(squeezed.square().sum(), list(kernel.parameters()))]

    expected, programs = squeezed_and_gradients(), PlainFormula()
    monkeypatch.setattr(closed_form, 'programs_for', lambda device: programs)
    assert largest_difference(squeezed_and_gradients(), expected) < 1e-10 and programs.calls == 2


def test_a_cpu_takes_single_operations():
    assert gpu.programs_for(torch.device('cpu')) is None


def test_without_a_compiler_the_log_says_so_once(caplog):
    """Here the driver is missing; a missing C compiler or Triton end the same way."""
    if torch.cuda.is_available():
        pytest.skip('asks for a machine without a GPU')
    device = torch.device('cuda:7')
    assert gpu.programs_for(device) is None and gpu.programs_for(device) is None
    (record,) = caplog.records
    assert 'Triton does not run here' in record.getMessage() and record.levelname == 'WARNING'
