"""tools/benchmark.py: what it measures and what it writes. No figure of speed is tested."""

import argparse
import json

import benchmark
import pytest
import torch
from conftest import done, refused

from orepa_mm import OREPAConv2d

METHODS = ('none', 'OREPA', 'OREPA, beside', 'OREPA, light, fixed scales')
SMALL = ('--batch', '2', '--size', '32', '--repeats', '1')


def rows_of(folder) -> list[dict]:
    assert len(list(folder.glob('*.png'))) == 1 and not list(folder.glob('*.partial'))
    return json.loads(next(folder.glob('*.json')).read_text())['rows']


@pytest.mark.slow
def test_one_network(tools, tmp_path):
    done(tools.run('tools/benchmark', '--arch', 'resnet18', *SMALL, '--methods', *METHODS[1:], '--out', tmp_path))
    rows = rows_of(tmp_path)
    steps = [row for row in rows if row['what'] == 'training step']
    forwards = [row['method'] for row in rows if row['what'] == 'eval forward']
    assert tuple(row['method'] for row in steps) == METHODS
    # Beside the optimizer it is the plain network.
    assert forwards == ['none', 'OREPA, training form', 'OREPA, re-parameterized']
    assert all(len(row['seconds']) == (1 if row in steps else 3) and min(row['seconds']) > 0 for row in rows)
    assert steps[0]['ratio'] == steps[0]['memory_ratio'] == 1
    # Beside the optimizer the processes of a training send what plain sends.
    assert [row['gradients'] // 4 for row in steps] == [11_689_512, 37_756_041, 11_689_512, 11_689_512]
    # Weights and momentum of a ResNet-18 with 1000 classes are alive all the time.
    assert steps[0]['memory'] > 2 * 4 * 11_689_512 and steps[1]['memory'] > 2 * 4 * 37_756_041
    assert steps[2]['memory'] > 2 * 4 * 37_000_000 > steps[3]['memory']
    assert min(steps[1]['floor'], steps[2]['floor']) > 1 and 'floor' not in steps[-1]
    # Fixed scales keep what plain keeps, and factors.
    kept = [row['kept'] / steps[0]['kept'] for row in steps]
    assert kept[0] == 1 < kept[3] < 1.05 and min(kept[1:3]) > 3
    assert all(row['memory'] > row['kept'] for row in steps)


@pytest.mark.parametrize(
    ('arch', 'options'),
    [
        ('repvgg-a0', ()),
        pytest.param('resnet50', ('--dtype', 'bfloat16', '--channels-last'), marks=pytest.mark.slow),
        pytest.param('pspnet', ('--size', '64', '96', '--no-memory'), marks=pytest.mark.slow),
        pytest.param('mask-rcnn', ('--size', '64', '--no-memory'), marks=pytest.mark.slow),
        pytest.param('deeplabv3plus', ('--size', '64', '--no-memory'), marks=pytest.mark.slow),
    ],
)
def test_other_networks(arch, options, tools, tmp_path):
    done(tools.run('tools/benchmark', '--arch', arch, *SMALL, '--what', 'step', '--methods', 'OREPA', *options, '--out', tmp_path))
    assert [row['method'] for row in rows_of(tmp_path)] == ['none', 'OREPA']


def test_forward_gives_its_result():
    """A compiled forward pass whose result nobody gets computes nothing."""
    args = argparse.Namespace(batch=2, size=(32, 32), device='cpu', dtype='float32', channels_last=False, compile=False)
    task = benchmark.Classification('resnet18', args)
    model = benchmark.build(task, 'none', args)
    logits = benchmark.forward_pass(task, model, args)()
    assert logits.shape == (2, 1000) and not logits.requires_grad
    with torch.no_grad():
        assert torch.equal(logits, model.eval()(task.x))


@pytest.mark.slow
def test_the_set_for_gpus(monkeypatch):
    """The same code on a CPU, at small sizes, with a compiler that only traces."""
    compiler = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda call: compiler(call, backend='eager'))
    options = dict(device='cpu', channels_last=True, no_memory=True, repeats=1)
    args = argparse.Namespace(**options, methods=['none', 'OREPA, light', 'OREPA, light, fixed scales'])
    rows = benchmark.gpu_rows(args, [('resnet18', 2, (32, 64), 'bfloat16'), ('resnet18', 3, (32, 64), 'bfloat16')])
    assert [(row['what'], row['batch'], row['method']) for row in rows] == [
        *[('training step', batch, method) for batch in (2, 3) for method in ('none', 'OREPA, light', 'OREPA, light, fixed scales')],
        ('training step, compiled', 2, 'none'),
        ('training step, compiled', 2, 'OREPA, light'),
    ]
    assert {row['size'] for row in rows} == {'32x64'} and all(row['seconds'][0] > 0 for row in rows)
    assert [(name, batch, size) for name, batch, size, _ in benchmark.GPU] == [
        ('resnet50', 64, (224, 224)),
        ('mask-rcnn', 2, (800, 1333)),
        ('pspnet', 2, (512, 1024)),
    ]


def test_tables_have_only_what_was_measured():
    row = dict(arch='resnet18', batch=2, size=32, dtype='float32', what='training step', seconds=[0.1], ratio=1.0)
    row |= dict(ratio_low=0.9, ratio_high=1.1)
    rows = [row | dict(method='none'), row | dict(method='OREPA', gradients=3e6), row | dict(method='none', batch=4)]
    time, gradients = (table.splitlines() for table in benchmark.markdown(rows).split('\n\n'))
    assert time[0].count('resnet18') == 2 and time[2:] == ['| none | 1 (100.0 ms) | 1 (100.0 ms) |', '| OREPA | 1.00 (0.90-1.10) |  |']
    assert gradients[2:] == ['| OREPA | 3 |']


def test_bad_options(tools, tmp_path):
    for options, message in (
        (('--repeats', '0'), '--repeats must be at least 1'),
        (('--batch', '1'), '--batch must be at least 2'),
        (('--size', '16', '64'), '--size must be at least 32'),
        (('--size', '64', '64', '64'), '--size takes a height and a width'),
        (('--arch', 'repvgg-a0', '--methods', 'DBB'), '--methods DBB: RepVGG has blocks of its own'),
    ):
        refused(tools.run('tools/benchmark', *options, '--out', tmp_path / 'x'), message)
    assert not (tmp_path / 'x').exists()


def test_the_floor_counts_the_products():
    # One squeezing of a 64 -> 64 layer: two products of its 3x3 kernel with 64 and 8 channels.
    layer = OREPAConv2d(64, 64, 3)
    flops = benchmark.squeezing_flops(layer)
    assert flops == 2 * 64 * 64 * 9 * (64 + 8)
    assert benchmark.floor(flops, plain_seconds=2.0, rate=float(flops)) == 1 + 3 / 2
    assert benchmark.product_rate('cpu') > 1e8
