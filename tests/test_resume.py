"""A run that is stopped and resumed ends as one that is not, and a kill at any moment leaves a whole checkpoint."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, done, few, full_disk
from mmengine.fileio import get_file_backend
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from small_runs import run
from torch import nn

from orepa_mm.engine.checkpoint_hook import BACKEND, repair_last_checkpoint
from orepa_mm.errors import CheckpointError, UsageError

CONFIG = """
_base_ = '{base}'
default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', filename_tmpl='{template}', max_keep_ckpts=2), seed=dict(type='SeedHook'))
custom_hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook'), dict(type='EMAHook')]
"""


def states(path: Path) -> dict:
    checkpoint = torch.load(path, weights_only=False)
    return {'model': checkpoint['state_dict'], 'averages': checkpoint['ema_state_dict'], 'momenta': checkpoint['optimizer']['state']}


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize('name', few(['imagenet', 'coco', 'cityscapes'], 'imagenet'))
def test_resumed_equals_undisturbed(name, tools, tmp_path):
    """With the recipes' augmentation, momentum, averaged weights, validation in deployed form and workers."""
    by_iterations = name == 'cityscapes'
    template = 'iter_{}.pth' if by_iterations else 'epoch_{}.pth'
    (tmp_path / 'config.py').write_text(CONFIG.format(base=ROOT / tools.CONFIGS[name], template=template))
    options = tools.options(name) | {'train_dataloader.num_workers': 2}
    length, whole, half = ('train_cfg.max_iters', 4, 2) if by_iterations else ('train_cfg.max_epochs', 2, 1)

    def train(work_dir: str, until: int, *args: str) -> Path:
        steps = {length: until, 'train_cfg.val_interval': half, 'default_hooks.checkpoint.interval': half}
        done(tools.run('tools/train', tmp_path / 'config.py', '--work-dir', tmp_path / work_dir, *args, options=options | steps))
        return tmp_path / work_dir / template.format(until)

    undisturbed = states(train('undisturbed', whole))
    stopped = states(train('resumed', half))
    resumed = states(train('resumed', whole, '--resume'))
    assert not equal(stopped['model'], resumed['model'])
    assert equal(undisturbed, resumed)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['imagenet', 'coco', 'cityscapes'])
def test_killed_again_and_again_it_ends_as_undisturbed(name, tools, tmp_path):
    """By SIGKILL and SIGTERM in turn, workers and all: at random, and each third time while a checkpoint is written."""
    length, count, template = ('max_iters', 20, 'iter_{}.pth') if name == 'cityscapes' else ('max_epochs', 10, 'epoch_{}.pth')
    (tmp_path / 'config.py').write_text(CONFIG.format(base=ROOT / tools.CONFIGS[name], template=template))
    options = tools.options(name) | {'train_dataloader.num_workers': 2, f'train_cfg.{length}': count, 'log_level': 'ERROR'}
    if name == 'cityscapes':
        options |= {'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 2}

    def start(work_dir: str) -> subprocess.Popen:
        pairs = [f'{key}={value}' for key, value in options.items()]
        command = [ROOT / 'tools/train.py', tmp_path / 'config.py', '--work-dir', tmp_path / work_dir, '--resume', '--cfg-options', *pairs]
        with (tmp_path / f'{work_dir}.log').open('a') as log:
            return subprocess.Popen([sys.executable, '-W', 'ignore', *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    began, generator = time.monotonic(), random.Random(0)
    assert start('undisturbed').wait() == 0, (tmp_path / 'undisturbed.log').read_text()[-3000:]
    seconds, folder = time.monotonic() - began, tmp_path / 'disturbed'

    def is_due(kill: int, seen: set[Path], after: float) -> bool:
        if kill % 3 == 2:
            return any(folder.glob('*.partial'))
        further = kill % 2 == 0 or bool(set(folder.glob('*.pth')) - seen)  # so that the end is reached
        return further and time.monotonic() > after

    for kill in range(6):
        process, seen, after = start('disturbed'), set(folder.glob('*.pth')), time.monotonic() + generator.uniform(0.3, 1) * seconds
        while process.poll() is None and not is_due(kill, seen, after):
            time.sleep(0.0005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM if kill % 2 else signal.SIGKILL)
        process.wait()
    assert start('disturbed').wait() == 0, (tmp_path / 'disturbed.log').read_text()[-3000:]
    assert equal(*(states(tmp_path / work_dir / template.format(count)) for work_dir in ('undisturbed', 'disturbed')))


def test_backend_replaces_whole_files_and_removes_late(tmp_path):
    backend = get_file_backend(str(tmp_path), backend_args=dict(backend=BACKEND))
    old, same = tmp_path / 'old.pth', tmp_path / 'same.pth'
    for path in (old, same):
        backend.put(b'1', str(path))
        backend.remove(str(path))
    assert old.read_bytes() == same.read_bytes() == b'1'
    backend.put(b'2', str(same))
    backend.put(b'3', str(same))  # may get the number of the first file
    backend.flush()
    assert not old.exists() and same.read_bytes() == b'3' and os.listdir(tmp_path) == ['same.pth']


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    backend = get_file_backend(str(tmp_path), backend_args=dict(backend=BACKEND))
    backend.put(b'1', str(tmp_path / 'a.pth'))
    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(UsageError, match='a.pth: cannot be written: No space left on device'):
        backend.put(b'22', str(tmp_path / 'a.pth'))
    assert (tmp_path / 'a.pth').read_bytes() == b'1' and os.listdir(tmp_path) == ['a.pth']


def test_last_checkpoint_names_the_newest_that_is_whole(tmp_path, caplog):
    logger = logging.getLogger('resume')
    record = tmp_path / 'last_checkpoint'
    for number in (1, 2, 3):
        path = tmp_path / f'epoch_{number}.pth'
        torch.save(dict(state_dict=dict(w=torch.ones(999)), optimizer=dict(state={})), path)
        os.utime(path, (number, number))
    torch.save(dict(state_dict=dict(w=torch.ones(1))), tmp_path / 'best_accuracy.pth')  # cannot be resumed
    data = (tmp_path / 'epoch_3.pth').read_bytes()
    (tmp_path / 'epoch_3.pth').write_bytes(data[:-200])
    os.utime(tmp_path / 'epoch_3.pth', (3, 3))
    for text in (str(tmp_path / 'epoch_3.pth'), '', str(tmp_path / 'epo')):
        record.write_text(text)
        caplog.clear()
        repair_last_checkpoint(tmp_path, None, logger)
        assert record.read_text() == str(tmp_path / 'epoch_2.pth')
        assert 'epoch_3.pth: cut short or damaged' in caplog.text and 'Resuming from' in caplog.text
    caplog.clear()
    record.write_text(str(tmp_path / 'epoch_1.pth'))  # whole, and what somebody wants
    repair_last_checkpoint(tmp_path, None, logger)
    assert record.read_text() == str(tmp_path / 'epoch_1.pth') and not caplog.text
    for number in (1, 2):
        (tmp_path / f'epoch_{number}.pth').unlink()
    for text in (str(tmp_path / 'epoch_1.pth'), ''):
        record.write_text(text)
        with pytest.raises(CheckpointError, match='none to resume from: .*best_accuracy.pth: holds weights only'):
            repair_last_checkpoint(tmp_path, None, logger)
    for path in tmp_path.glob('*.pth'):
        path.unlink()
    repair_last_checkpoint(tmp_path, None, logger)
    assert not record.exists()
    folder = tmp_path / 'epoch_1.pth'  # as strategies write them
    folder.mkdir()
    record.write_text(str(folder))
    repair_last_checkpoint(tmp_path, None, logger)
    assert record.read_text() == str(folder)


@pytest.mark.parametrize('hook', ['CheckpointHook', 'AtomicCheckpointHook'])
@pytest.mark.parametrize('damage', ['cut', 'foreign', 'not recorded', 'empty'])
def test_resuming_never_starts_anew_beside_checkpoints(damage, hook, tmp_path):
    hooks = dict(default_hooks=dict(checkpoint=dict(type=hook, interval=1)), custom_hooks=[dict(type='CheckHook')])
    model = dict(type='BaseModelOfOne')
    if damage != 'empty':
        run(model, {}, tmp_path, 1, **hooks)
    path = tmp_path / 'epoch_1.pth'
    if damage == 'cut':
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == 'foreign':
        torch.save(dict(weights=[1]), path)
    elif damage == 'not recorded':
        (tmp_path / 'last_checkpoint').unlink()
    content = path.read_bytes() if path.exists() else b''
    if damage == 'empty' or (damage == 'not recorded' and hook.startswith('Atomic')):  # which finds it
        assert run(model, {}, tmp_path, 2, resume=True, **hooks).epoch == 2
        return
    with pytest.raises(CheckpointError):
        run(model, {}, tmp_path, 2, resume=True, **hooks)
    assert path.read_bytes() == content and not (tmp_path / 'epoch_2.pth').exists()


@MODELS.register_module()
class BaseModelOfOne(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, inputs, mode):
        return dict(loss=self.conv(inputs).square().mean())
