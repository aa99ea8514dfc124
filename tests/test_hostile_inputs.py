"""The tools on broken and hostile files: .dev_scripts/hostile_inputs.py."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='runs are forked')


@pytest.mark.parametrize('options', [('--sample', '6'), pytest.param((), marks=pytest.mark.slow)], ids=['sample', 'all'])
def test_every_run_ends_in_one_line(exporter, options):
    command = [sys.executable, '-W', 'ignore', str(ROOT / '.dev_scripts' / 'hostile_inputs.py'), *options]
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-1000:]
    assert ' 0 not as they should' in result.stdout
