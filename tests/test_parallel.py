"""Wrappers that split or copy a model: what works, and what is refused with a sentence."""

from types import SimpleNamespace

import pytest
import torch
from conftest import free_port, python
from mmengine.model import MMDistributedDataParallel
from mmengine.utils import digit_version
from mmpretrain.models import AverageClsScoreTTA, ImageClassifier
from test_orepa_conv import FORMS, build
from torch import nn

from orepa_mm.engine.changed_parameters import wrap_again
from orepa_mm.engine.distributed import unwrapped


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


SHARDED = """
import copy, os, sys, torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
import orepa_mm
from orepa_mm.errors import FuseError

def train(model):
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(x).square().mean().sqrt()
        loss.backward()
        optimizer.step()
        yield loss.item()

torch.distributed.init_process_group('gloo')
init_device_mesh('cpu', (2,))
torch.manual_seed(0)
net = nn.Sequential(orepa_mm.OREPAConv2d(4, 8, 7, padding=3), orepa_mm.OREPAConv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(2))
x = torch.randn(2, 4, 8, 8)
net(x)
expected = list(train(copy.deepcopy(net)))
assert expected[-1] != expected[0] and expected[-1] < 1e3
if sys.argv[1] == 'FSDP2':
    for conv in net[:2]:
        fully_shard(conv)
    wrapped = fully_shard(net)
else:  # with flat parameters
    wrapped = FullyShardedDataParallel(net, device_id=torch.device('cpu'), use_orig_params=sys.argv[1] == 'original')
for loss, value in zip(train(wrapped), expected, strict=True):
    assert abs(loss - value) < 1e-5 * abs(value), (loss, value)
try:
    orepa_mm.reparameterize(wrapped)
except FuseError as error:
    assert 'sharded' in str(error)
else:
    raise AssertionError('it was re-parameterized')
torch.distributed.barrier()
print('done', flush=True)
os._exit(0)  # threads of a backend can abort an interpreter that ends in its own time
"""


@pytest.mark.parametrize('kind', [pytest.param('flat', marks=pytest.mark.slow), pytest.param('original', marks=pytest.mark.slow), 'FSDP2'])
def test_sharded_models_train_alike_and_are_not_reparameterized(kind, tmp_path):
    if kind == 'FSDP2' and digit_version(torch.__version__) < digit_version('2.8'):
        pytest.skip('FSDP2 of torch 2.6 and 2.7 has no path for CPUs')
    (tmp_path / 'run.py').write_text(SHARDED)
    launcher = ('-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}')
    result = python(*launcher, tmp_path / 'run.py', kind, CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 0 and result.stdout.count('done') == 2, result.stdout[-2000:] + result.stderr[-3000:]


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
