"""Wrappers that split or copy a model: what works, and what is refused with a sentence."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import free_port
from mmengine.model import MMDistributedDataParallel
from mmengine.utils import digit_version
from mmpretrain.models import AverageClsScoreTTA, ImageClassifier
from test_orepa_conv import FORMS, build
from torch import nn

from orepa_mm import OREPAConv2d
from orepa_mm.engine.changed_parameters import wrap_again
from orepa_mm.engine.distributed import unwrapped

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize('form', FORMS)
def test_parameters_are_contiguous(form):
    conv = build(form)
    assert all(p.is_contiguous() for p in conv.parameters())
    assert all(p.is_contiguous() or p.dim() == 4 for p in conv.to(memory_format=torch.channels_last).parameters())


@pytest.mark.parametrize('form', FORMS)
def test_a_replica_without_registered_parameters_computes_the_same(form):
    """As ``nn.DataParallel`` and FSDP make them: the weights are there, but no parameters."""
    conv, x = build(form), torch.randn(2, 6, 9, 9)
    expected = conv(x)
    replica = build(form)
    for module, other in zip(conv.modules(), replica.modules(), strict=True):
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(other, name)
            setattr(other, name, parameter.detach().clone())
    assert not list(replica.parameters()) and torch.equal(replica(x), expected)


SCRIPTS = {
    # FSDP1, with flat parameters
    'fsdp': """
        from torch.distributed.fsdp import FullyShardedDataParallel

        wrapped = FullyShardedDataParallel(net, device_id=torch.device('cpu'), use_orig_params=use_orig_params)
    """,
    # FSDP2
    'fully_shard': """
        from torch.distributed.fsdp import fully_shard

        for conv in net[:2]:
            fully_shard(conv)
        wrapped = fully_shard(net)
    """,
}


@pytest.mark.parametrize(
    ('kind', 'use_orig_params'),
    [pytest.param('fsdp', False, marks=pytest.mark.slow), pytest.param('fsdp', True, marks=pytest.mark.slow), ('fully_shard', None)],
)
def test_sharded_models_train_alike_and_are_not_reparameterized(kind, use_orig_params, tmp_path):
    if kind == 'fully_shard' and digit_version(torch.__version__) < digit_version('2.8'):
        pytest.skip('FSDP2 of torch 2.6 and 2.7 has no path for CPUs')
    script = tmp_path / 'run.py'
    script.write_text(
        textwrap.dedent("""
        import copy, os, torch
        from torch import nn
        from torch.distributed.device_mesh import init_device_mesh
        import orepa_mm
        from orepa_mm.errors import FuseError

        torch.distributed.init_process_group('gloo')
        init_device_mesh('cpu', (2,))
        torch.manual_seed(0)
        net = nn.Sequential(orepa_mm.OREPAConv2d(4, 8, 7, padding=3), orepa_mm.OREPAConv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(2))
        x = torch.randn(2, 4, 8, 8)
        net(x)
        alone = copy.deepcopy(net)
        expected = []
        optimizer = torch.optim.SGD(alone.parameters(), 1e-4)
        for _ in range(3):
            optimizer.zero_grad()
            loss = alone(x).square().mean().sqrt()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
        assert expected[-1] != expected[0] and expected[-1] < 1e3
        use_orig_params = %r
        """)
        % use_orig_params
        + textwrap.dedent(SCRIPTS[kind])
        + textwrap.dedent("""
        optimizer = torch.optim.SGD(wrapped.parameters(), 1e-4)
        for value in expected:
            optimizer.zero_grad()
            loss = wrapped(x).square().mean().sqrt()
            loss.backward()
            optimizer.step()
            assert abs(loss.item() - value) < 1e-5 * abs(value), (loss.item(), value)
        try:
            orepa_mm.reparameterize(wrapped)
        except FuseError as error:
            assert 'sharded' in str(error)
        else:
            raise AssertionError('it was re-parameterized')
        torch.distributed.barrier()
        print('done', flush=True)
        os._exit(0)  # threads of a backend can abort an interpreter that ends in its own time
        """)
    )
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}', str(script)],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(ROOT)),
        cwd=ROOT,
    )
    assert result.returncode == 0 and result.stdout.count('done') == 2, result.stdout[-2000:] + result.stderr[-3000:]


def test_data_parallel_on_a_cpu_is_the_model_itself():
    conv, x = OREPAConv2d(4, 8, 3), torch.randn(1, 4, 8, 8)
    assert torch.equal(nn.DataParallel(conv)(x), conv(x))


def test_wrappers_stay_around_a_model_that_is_changed():
    """A distributed wrapper around test-time augmentation: hooks find the network inside, and wrapping again keeps the augmentation."""
    network = ImageClassifier(backbone=dict(type='OREPAResNet', depth=18))
    augmented = AverageClsScoreTTA(module=network)
    outer = MMDistributedDataParallel.__new__(MMDistributedDataParallel)  # building one takes a process group
    nn.Module.__init__(outer)
    outer.module = augmented
    assert unwrapped(outer) is unwrapped(augmented) is unwrapped(network) is network
    runner = SimpleNamespace(model=outer, cfg={}, wrap_model=lambda cfg, model: ('wrapped', model))
    wrap_again(runner)
    assert runner.model == ('wrapped', augmented)
    runner.model = augmented
    wrap_again(runner)
    assert runner.model is augmented
