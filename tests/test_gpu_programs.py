"""Squeezing in a few launches, which a GPU does: the same programs interpreted on the CPU, and where they cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import needs_torch

from orepa_mm.functional import gpu


def test_the_programs_give_the_plain_formulas_numbers():
    pytest.importorskip('triton')
    needs_torch('2.6', 'a Triton that these programs were written for')
    script = Path(__file__).parent / 'interpreted_triton.py'
    # A process of its own: what Triton offers is for its compiler or its interpreter from the first import on.
    done = subprocess.run([sys.executable, script], env=dict(os.environ, TRITON_INTERPRET='1'), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'equal\n'), done.stderr


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
