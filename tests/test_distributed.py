"""Runs of two processes on CPUs, started by tools/dist_train.sh and dist_test.sh: equal to one process, and over when one fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, done, free_port, refused
from doc_blocks import blocks
from mmengine.config import Config
from torch import nn

from orepa_mm.engine.distributed import adapt_to_cpus, check_together

WAIT = 1200  # seconds; processes that wait for each other would wait for half an hour


class Start:
    """Starts ``tools/dist_*.sh`` as a user does, on a small config. What is left of the runs ends with the test."""

    def __init__(self, tools, folder: Path) -> None:
        self.tools, self.folder, self.seen = tools, folder, []

    def config(self, name: str, *hooks: dict, **changes) -> Path:
        """A small config with more hooks and settings; ``changes`` with two underscores for a dot."""
        path = self.folder / f'{len(list(self.folder.glob("*.py")))}.py'
        cfg = Config.fromfile(ROOT / self.tools.CONFIGS[name])
        cfg.merge_from_dict(self.tools.options(name) | {key.replace('__', '.'): value for key, value in changes.items()})
        cfg.custom_imports.imports = ['orepa_mm', 'distributed_hooks']
        cfg.custom_hooks += hooks
        cfg.dump(path)
        return path

    def __call__(self, tool: str, *args, **variables) -> subprocess.Popen:
        needed = dict(PYTHON=sys.executable, PORT=free_port(), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
        process = subprocess.Popen(
            ['bash', f'tools/dist_{tool}.sh', *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=dict(os.environ, PYTHONPATH=f'{ROOT}:{ROOT / "tests"}:{self.folder}', **needed | variables),
        )
        self.seen.append(psutil.Process(process.pid))
        return process

    def stop(self) -> None:
        for process in self.seen:
            if process.is_running():
                for child in process.children(recursive=True):
                    child.kill()
                process.kill()


@pytest.fixture
def start(tools, tmp_path):
    started = Start(tools, tmp_path)
    yield started
    started.stop()


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=WAIT)
    return process.returncode, output


def succeed(process: subprocess.Popen) -> str:
    status, output = finish(process)
    assert status == 0, output[-3000:]
    return output


def fail(process: subprocess.Popen, *parts: str) -> str:
    """Its output; one line of error has all the parts."""
    status, output = finish(process)
    lines = set(re.findall(r'^error: (.*)', output, re.MULTILINE))
    assert status != 0 and any(all(part in line for part in parts) for line in lines), output[-3000:]
    return output


def reports(folder: Path) -> list[dict]:
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob('rank*.pt'))]


def apart(a: dict, b: dict) -> float:
    """The largest difference of two state dicts, relative to the largest value of the tensor it is in."""
    assert a.keys() == b.keys()
    pairs = [(a[key].double(), b[key].double()) for key in a]
    return max(float((x - y).abs().max() / x.abs().max().clamp_min(1e-3)) for x, y in pairs)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def code_block(words: str) -> str:
    """The first piece of Python in docs/scaling.md with these words."""
    return next(block.text for block in blocks(ROOT / 'docs/scaling.md') if block.language == 'python' and words in block.text)


def report(folder: Path) -> dict:
    return dict(type='Report', folder=str(folder))


# Norms in evaluation mode do not mix pictures, so the loss is a mean over them and one batch of 4 is two of 2. Two steps an epoch.
EQUAL = dict(model__backbone__norm_eval=True, train_dataloader__dataset__indices=8)
TWO_EPOCHS = dict(train_cfg__max_epochs=2, default_hooks__checkpoint__interval=2)


def test_two_processes_train_as_one(start, tools, tmp_path):
    """With augmentation, momentum, the schedule, and a validation in deployed form after each epoch."""
    two = start.config('imagenet', report(tmp_path / 'two'), **EQUAL, **TWO_EPOCHS)
    one = start.config('imagenet', report(tmp_path / 'one'), **EQUAL, **TWO_EPOCHS, train_dataloader__batch_size=4)
    succeed(start('train', two, 2, '--work-dir', tmp_path / 'run'))
    done(tools.run('tools/train', one, '--work-dir', tmp_path / 'alone'))
    first, second = reports(tmp_path / 'two')
    (alone,) = reports(tmp_path / 'one')
    assert equal(first['start'], alone['start']) and apart(first['start'], first['end']) > 1e-2
    assert equal(first['end'], second['end'])
    assert apart(first['end'], alone['end']) < 1e-5  # float32: sums over pictures in another order, four steps
    assert first['metrics'] == second['metrics'] == alone['metrics']
    for process in (first, second):  # each was in deployed form for its validations only
        assert set(process['trained']) == {17} and set(process['tested']) == {0} and len(process['tested']) == 2
        assert process['differences'] == alone['differences'] and process['differences'][0] < 1e-5
    saved, expected = (torch.load(tmp_path / run / 'last.pth', weights_only=False) for run in ('run', 'alone'))
    assert apart(saved['state_dict'], expected['state_dict']) < 1e-5
    momenta = [{str(i): entry['momentum_buffer'] for i, entry in c['optimizer']['state'].items()} for c in (saved, expected)]
    assert apart(*momenta) < 1e-4  # sums of gradients, which vary more than weights


@pytest.mark.slow
def test_a_process_without_a_batch_does_not_keep_the_others_waiting(start, trained, tools, tmp_path):
    checkpoint, alone = trained('imagenet', tools), tmp_path / 'alone.json'
    sampler = dict(type='DefaultSampler', shuffle=False, round_up=False)  # the one picture is for the first process
    settings = dict(test_dataloader__dataset__indices=1, test_dataloader__sampler=sampler)
    config = start.config('imagenet', report(tmp_path / 'two'), **settings)
    output = succeed(start('test', config, checkpoint, 2, '--work-dir', tmp_path / 'run', '--metrics', tmp_path / 'two.json'))
    assert 'Re-parameterized 17 layers' in output
    done(tools.run('tools/test', config, checkpoint, '--work-dir', tmp_path / 'run', '--metrics', alone))
    assert json.loads((tmp_path / 'two.json').read_text()) == json.loads(alone.read_text())


def test_data_is_checked_by_one_process_of_a_machine(monkeypatch):
    asked = []
    for rank in '01':
        monkeypatch.setenv('LOCAL_RANK', rank)
        check_together(lambda rank=rank: asked.append(rank), once_a_node=True)
        check_together(lambda rank=rank: asked.append(rank + ' too'))
    assert asked == ['0', '0 too', '1 too']


def test_synchronised_norms_become_ordinary_ones_on_cpus():
    name = ROOT / 'configs/cityscapes/pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024.py'
    cfg = Config.fromfile(name)
    message = adapt_to_cpus(cfg)
    assert 'SyncBN' in message and 'other weights' in message
    assert cfg.model.backbone.norm_cfg.type == cfg.model.decode_head.norm_cfg.type == 'BN'
    assert str(cfg.model).replace("'BN'", "'SyncBN'") == str(Config.fromfile(name).model)
    assert adapt_to_cpus(cfg) is None and cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.broadcast_buffers is False  # as on GPUs
    cfg.update(sync_bn='torch', model_wrapper_cfg=dict(broadcast_buffers=True))
    assert 'SyncBN' in adapt_to_cpus(cfg) and cfg.sync_bn is None and cfg.model_wrapper_cfg.broadcast_buffers is True
    cfg = Config(dict(model=dict(a=[dict(type=nn.SyncBatchNorm)], b=dict(type=nn.BatchNorm2d))))  # classes
    assert 'SyncBN' in adapt_to_cpus(cfg) and cfg.model == dict(a=[dict(type='BN')], b=dict(type=nn.BatchNorm2d))


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_launchers_that_need_a_gpu_are_refused_without_one(launcher, tools, tmp_path, monkeypatch):
    monkeypatch.setattr('orepa_mm.engine.distributed.get_device', lambda: 'cpu')
    refused(tools.train('imagenet', tmp_path / 'run', '--launcher', launcher), f'--launcher {launcher}', 'dist_train.sh')
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['coco', 'cityscapes'])
def test_detectors_and_segmentors_train_and_test_in_two_processes(name, start, tools, tmp_path):
    """Their losses count objects and their norms mix pictures, so that two processes only have to agree with each other."""
    config = start.config(name, report(tmp_path / 'trained'))
    output = succeed(start('train', config, 2, '--work-dir', tmp_path / 'run'))
    assert ('The synchronised norms (SyncBN)' in output) == (name == 'cityscapes')
    first, second = reports(tmp_path / 'trained')
    parameters = [key for key in first['end'] if not key.endswith(('running_mean', 'running_var'))]
    assert all(torch.equal(first['end'][key], second['end'][key]) for key in parameters)
    assert first['metrics'] == second['metrics'] and first['metrics']
    files = [tmp_path / 'two.json', tmp_path / 'one.json']
    succeed(start('test', config, tmp_path / 'run' / 'last.pth', 2, '--work-dir', tmp_path / 'run', '--metrics', files[0]))
    done(tools.run('tools/test', config, tmp_path / 'run' / 'last.pth', '--work-dir', tmp_path / 'run', '--metrics', files[1]))
    two, one = (json.loads(file.read_text()) for file in files)
    assert two == pytest.approx(one) and two


@pytest.mark.slow
def test_compressed_gradients(start, tmp_path):
    """By the hook that docs/scaling.md shows, as it stands there."""
    (tmp_path / 'compress.py').write_text(code_block('class'))
    whole = start.config('imagenet', report(tmp_path / 'whole'), **EQUAL)
    halved = start.config('imagenet', report(tmp_path / 'halved'), dict(type='CompressGradients'), **EQUAL)
    cfg = Config.fromfile(halved)
    cfg.custom_imports.imports.append('compress')
    cfg.dump(halved)
    for config in (whole, halved):
        succeed(start('train', config, 2, '--work-dir', tmp_path / config.stem))
    (exact, _), (first, second) = reports(tmp_path / 'whole'), reports(tmp_path / 'halved')
    assert equal(first['end'], second['end'])
    changes = [{key: run['end'][key].double() - run['start'][key].double() for key in run['end']} for run in (exact, first)]
    assert 0 < apart(*changes) < 0.05  # bfloat16 keeps 8 bits, and the second step starts from what the first left


@pytest.mark.slow
def test_decay_of_deployed_kernels_is_the_same_in_all_processes(start, tmp_path):
    """It depends on the norms' statistics, which every process has of its own pictures."""
    config = start.config('imagenet', report(tmp_path / 'two'), **TWO_EPOCHS)
    cfg = Config.fromfile(config)
    cfg.model.backbone = dict(type='OREPARepVGG', arch='A0', method='RepVGG')
    cfg.model.head.in_channels = 1280
    cfg.optim_wrapper.paramwise_cfg.custom_l2 = True
    cfg.optim_wrapper.optimizer.weight_decay = 0.1
    cfg.dump(config)
    succeed(start('train', config, 2, '--work-dir', tmp_path / 'run'))
    first, second = (run['end'] for run in reports(tmp_path / 'two'))
    statistics = [key for key in first if 'running_' in key]
    assert statistics and not all(torch.equal(first[key], second[key]) for key in statistics)
    assert all(torch.equal(first[key], second[key]) for key in first if key not in statistics)


@pytest.mark.slow
@pytest.mark.parametrize(('tool', 'how'), [('train', 'SIGKILL'), ('train', 'SIGTERM'), ('train', 'nan'), ('test', 'nan')])
def test_all_end_when_one_fails(tool, how, start, trained, tools, tmp_path):
    config = start.config('imagenet', dict(type='FailInOne', rank=1, how=how), train_dataloader__dataset__indices=16)
    checkpoint = [trained('imagenet', tools)] if tool == 'test' else []
    (tmp_path / 'run').mkdir()
    process = start(tool, config, *checkpoint, 2, '--work-dir', tmp_path / 'run')
    status, output = finish(process)  # also reads until no process is left that could write
    failed = json.loads((tmp_path / 'run' / 'failed.json').read_text())
    assert status != 0 and not psutil.pid_exists(failed['pid'])
    nan = 'error: .*the layer "backbone.conv1" gives values that are not finite'
    assert re.search(nan if how == 'nan' else rf'{how}\) received by PID {failed["pid"]}', output)


@pytest.mark.slow
def test_a_check_that_fails_on_one_machine_ends_the_run_on_all(start, tmp_path):
    """Two launchers with one process each, as two machines have them. Neither sees how the other's process ends."""
    config, missing = start.config('imagenet'), tmp_path / 'absent'
    machines, port = [], free_port()
    for rank in (0, 1):
        options = ['--cfg-options', f'train_dataloader.dataset.data_root={missing}'] if rank else []
        variables = dict(NNODES='2', NODE_RANK=str(rank), PORT=port)
        machines.append(start('train', config, 1, '--work-dir', tmp_path / 'run', *options, **variables))
    for process in machines:
        assert fail(process, str(missing)).count('\nerror: ') <= 1
    assert not (tmp_path / 'run').exists()


def sharded(**changes) -> dict:
    """mmengine's FSDP as docs/scaling.md writes it for CPUs, with a validation in training form."""
    strategy = Config.fromstring(code_block('offload_to_cpu=False'), '.py').strategy
    hooks = [dict(type='ReparameterizeHook', val=False), dict(type='CheckHook')]
    return EQUAL | dict(runner_type='FlexibleRunner', strategy=strategy, custom_hooks=hooks) | changes


@pytest.mark.slow
def test_fsdp_trains_as_one_process(start, tools, trained, tmp_path):
    """From weights that are checked, and to a checkpoint that can be tested in deployed form without sharding."""
    checkpoint = trained('imagenet', tools)
    two = start.config('imagenet', report(tmp_path / 'two'), **sharded(load_from=str(checkpoint)))
    one = start.config('imagenet', report(tmp_path / 'one'), **EQUAL, train_dataloader__batch_size=4, load_from=str(checkpoint))
    succeed(start('train', two, 2, '--work-dir', tmp_path / 'run'))
    done(tools.run('tools/train', one, '--work-dir', tmp_path / 'alone'))
    (alone,) = reports(tmp_path / 'one')
    saved = torch.load(tmp_path / 'run' / 'last.pth', weights_only=False)['state_dict']
    assert apart(alone['start'], alone['end']) > 1e-2 and apart(saved, alone['end']) < 1e-5
    assert reports(tmp_path / 'two')[0]['metrics'] == alone['metrics']
    done(tools.run('tools/test', one, tmp_path / 'run' / 'last.pth', '--work-dir', tmp_path / 'test'))
    fail(start('train', two, 2, '--work-dir', tmp_path / 'run', '--resume'), 'a sharded training (FSDP) cannot be resumed')


@pytest.mark.slow
def test_fsdp_refuses_what_it_cannot_do_before_it_starts(start, tools, trained, tmp_path):
    hooks = [dict(type='ReparameterizeHook'), dict(type='CheckHook')]
    config = start.config('imagenet', report(tmp_path / 'reports'), **sharded(custom_hooks=hooks))
    checkpoint = trained('imagenet', tools)
    for run in (('train', config, 2), ('test', config, checkpoint, 2)):
        output = fail(start(*run, '--work-dir', tmp_path / 'run'), 'the model is sharded (FSDP)', 'val=False')
        assert 'Epoch(train)' not in output and not reports(tmp_path / 'reports')
    wider = start.config('imagenet', **sharded(load_from=str(checkpoint), model__backbone__base_channels=32, model__head__in_channels=256))
    fail(start('train', wider, 2, '--work-dir', tmp_path / 'run'), 'last.pth', 'of another shape')
