"""Runs of two processes on CPUs, started by tools/dist_train.sh and dist_test.sh: equal to one process, and over when one fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, free_port
from mmengine.config import Config


class Start:
    """Starts ``tools/dist_*.sh`` as a user does, on a small config; what is left of the runs ends with the test."""

    def __init__(self, tools, folder: Path) -> None:
        self.tools, self.folder, self.running = tools, folder, []

    def config(self, name: str, *hooks: dict, **changes) -> Path:
        """A small config with more hooks and settings; ``changes`` with two underscores for a dot."""
        path = self.folder / f'{len(list(self.folder.glob("*.py")))}.py'
        options = self.tools.options(name) | {'train_dataloader.num_workers': 1}
        cfg = Config.fromfile(ROOT / self.tools.CONFIGS[name])
        cfg.merge_from_dict(options | {key.replace('__', '.'): value for key, value in changes.items()})
        cfg.custom_imports.imports = ['orepa_mm', 'distributed_hooks']
        cfg.custom_hooks += hooks
        cfg.dump(path)
        return path

    def __call__(self, tool: str, *args, **env) -> subprocess.Popen:
        variables = dict(PYTHON=sys.executable, PORT=free_port(), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
        self.running.append(
            subprocess.Popen(
                ['bash', f'tools/dist_{tool}.sh', *map(str, args)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
                env=dict(os.environ, PYTHONPATH=f'{ROOT}:{ROOT / "tests"}', **variables | env),
            )
        )
        return self.running[-1]

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()


@pytest.fixture
def start(tools, tmp_path):
    started = Start(tools, tmp_path)
    yield started
    started.stop()


def finish(process: subprocess.Popen, timeout: int = 200) -> tuple[int, str]:
    """Exit status and output. Processes that wait for each other would wait for half an hour."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def reports(folder: Path) -> list[dict]:
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob('rank*.pt'))]


def apart(a: dict, b: dict) -> float:
    """The largest difference of two state dicts, relative to the largest value of the tensor it is in."""
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max() / a[k].double().abs().max().clamp_min(1e-3)) for k in a)


def test_two_processes_train_as_one(start, tools, tmp_path):
    """At the same global batch. Norms are in evaluation mode, so that the loss is a mean over pictures that do not know of each other."""
    settings = dict(model__backbone__norm_eval=True, train_cfg__max_epochs=2, default_hooks__checkpoint__interval=2)
    two = start.config('imagenet', dict(type='Report', folder=str(tmp_path / 'two')), **settings)
    one = start.config('imagenet', dict(type='Report', folder=str(tmp_path / 'one')), train_dataloader__batch_size=4, **settings)
    status, output = finish(start('train', two, 2, '--work-dir', tmp_path / 'run'))
    assert status == 0, output[-3000:]
    status, error = tools.run('tools/train', one, '--work-dir', tmp_path / 'alone')
    assert status == 0, error
    first, second = reports(tmp_path / 'two')
    (alone,) = reports(tmp_path / 'one')
    print(apart(first['end'], alone['end']), apart(first['momenta'], alone['momenta']), apart(first['start'], first['end']))
    print(first['forms'], alone['forms'], first['metrics'], first['differences'], second['differences'])
    assert 0
