"""What reparameterize_model.py writes serves and tests with the stock toolboxes alone, as the training form does with this package."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, done, few, full_disk, refused, run_without
from mmengine.config import Config
from small_runs import last_checkpoint, run
from stock_inference import predictions
from test_resume import BaseModelOfOne
from test_tools import SCOPES

import orepa_mm
from orepa_mm.deploy.loading import weights_of

REPARAMETERIZE = 'tools/model_converters/reparameterize_model'


@pytest.mark.parametrize('name', few(SCOPES, 'imagenet'))
def test_stock_inferencers_and_test_script(name, trained, tools, tmp_path):
    checkpoint, options = trained(name, tools), tools.options(name)
    done(tools.run(REPARAMETERIZE, tools.CONFIGS[name], checkpoint, tmp_path / 'deployed', options=options))
    done(tools.test(name, checkpoint, tmp_path / 'test', '--no-reparameterize', '--metrics', tmp_path / 'metrics.json'))
    cfg = Config.fromfile(ROOT / tools.CONFIGS[name])
    cfg.merge_from_dict(options)
    cfg.dump(tmp_path / 'config.py')
    folder = tools.data / f'{name}-mini'
    picture = next(path for path in sorted(folder.rglob('val*/**/*')) if path.suffix in ('.png', '.jpg'))
    given = (SCOPES[name], str(tmp_path / 'config.py'), str(checkpoint), str(picture))
    expected, again = predictions(*given), predictions(*given, orepa_mm.reparameterize)
    arguments = (SCOPES[name], tmp_path / 'deployed', picture, tmp_path)
    run_without('orepa_mm', ROOT / 'tests' / 'stock_inference.py', *arguments, cwd=tmp_path, PYTHONPATH='')
    found = json.loads((tmp_path / 'predictions.json').read_text())
    assert len(expected) == len(found) == len(again) > 0
    for a, *others in zip(expected, again, found, strict=True):
        for b in others:  # pixels, probabilities and labels; a float32 network's rounding
            assert b == pytest.approx(a, rel=1e-4, abs=1e-4)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    stock = json.loads(next(tmp_path.glob('2*/2*.json')).read_text())
    metrics = {key: value for key, value in metrics.items() if 'time' not in key}
    assert metrics and {key: stock[key] for key in metrics} == pytest.approx(metrics, abs=1e-3)


def test_classifiers_of_other_libraries(tools, tmp_path):
    import timm
    import torchvision
    from mmpretrain.registry import MODELS

    wide = {'model.backbone.stem_channels': 64, 'model.backbone.base_channels': 64, 'model.head.in_channels': 512}
    config, options = tools.CONFIGS['imagenet'], tools.options('imagenet') | wide
    cfg = Config.fromfile(ROOT / config)
    cfg.merge_from_dict(options)
    model = MODELS.build(dict(cfg.model, data_preprocessor=dict(type='ClsDataPreprocessor'))).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x, mode='tensor')
    builders = dict(torchvision=torchvision.models.resnet18, timm=lambda **kwargs: timm.create_model('resnet18', **kwargs))
    for library, build in builders.items():
        folder = tmp_path / library
        done(tools.run(REPARAMETERIZE, config, tmp_path / 'trained.pth', folder, '--format', library, options=options))
        network = build(num_classes=5).eval()
        network.load_state_dict(torch.load(folder / 'model.pth', weights_only=True), strict=True)
        with torch.no_grad():
            assert torch.allclose(network(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))  # float32 rounding
        facts = json.loads((folder / 'model.json').read_text())
        assert (facts['library'], facts['model'], facts['num_classes']) == (library, 'resnet18', 5)
        assert facts['input']['channels'] == 'RGB' and facts['input']['mean'] == [123.675, 116.28, 103.53]


def test_bad_input(trained, tools, tmp_path, monkeypatch):
    checkpoint, options = trained('imagenet', tools), tools.options('imagenet')

    def run(source: Path, out: Path, *args: str, name: str = 'imagenet', options: dict = options):
        return tools.run(REPARAMETERIZE, tools.CONFIGS[name], source, out, *args, options=options)

    out = tmp_path / 'out'
    refused(run(checkpoint, out, name='coco', options=tools.options('coco')), 'last.pth', 'does not fit')
    refused(run(checkpoint, out, '--ema'), 'no averaged weights', 'EMAHook')
    refused(run(checkpoint, out, '--format', 'torchvision'), 'torchvision has no model')
    assert not out.exists()

    done(run(checkpoint, out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused(run(checkpoint, out), 'exists', '--force')
    stem = options | {'model.backbone.plain_stem': True}
    refused(run(out / 'model.pth', tmp_path / 'other', options=stem), 're-parameterized already')
    extra = torch.load(checkpoint, weights_only=False)
    extra['state_dict']['neck.weight'] = torch.ones(1)
    torch.save(extra, tmp_path / 'extra.pth')
    refused(run(tmp_path / 'extra.pth', tmp_path / 'other'), 'neck.weight', 'no place')

    monkeypatch.setattr(Path, 'write_bytes', full_disk)
    refused(run(checkpoint, out, '--force'), 'No space left on device')
    refused(run(checkpoint, tmp_path / 'other'), 'No space left on device')
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / 'other').exists()


def test_averaged_weights(tmp_path):
    """What EMAHook saves as the state dict are the averaged weights, and beside it those that were trained."""
    model = BaseModelOfOne()
    run(model, {}, tmp_path, 1, custom_hooks=[dict(type='EMAHook', momentum=0.5)])
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=False)
    assert not torch.equal(checkpoint['state_dict']['conv.weight'], model.conv.weight)
    for ema, expected in ((None, checkpoint['state_dict']), (True, checkpoint['state_dict']), (False, model.state_dict())):
        found = weights_of(checkpoint, 'a.pth', ema)
        assert found.keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in found.items())


def test_publishing(trained, tools, tmp_path):
    tool, checkpoint = 'tools/model_converters/publish_model', trained('imagenet', tools)
    done(tools.run(tool, checkpoint, tmp_path / 'orepa.pth'))
    (published,) = tmp_path.iterdir()
    assert published.name == f'orepa-{hashlib.sha256(published.read_bytes()).hexdigest()[:8]}.pth'
    before, after = torch.load(checkpoint, weights_only=False), torch.load(published, weights_only=True)
    assert set(after) == {'meta', 'state_dict'} and 'optimizer' in before
    assert all(torch.equal(value, after['state_dict'][key]) for key, value in before['state_dict'].items())
    refused(tools.run(tool, checkpoint, tmp_path / 'b.pth', '--save-keys', 'meta'), 'no weights')
    assert len(list(tmp_path.iterdir())) == 1
