"""What reparameterize_model.py writes serves and tests with the stock toolboxes alone, as the training form does with this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, few
from mmengine.config import Config

import orepa_mm

SCOPES = dict(imagenet='mmpretrain', coco='mmdet', cityscapes='mmseg')
REPARAMETERIZE = 'tools/model_converters/reparameterize_model'

STOCK = """
import json, runpy, sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'orepa_mm':
            raise ImportError('orepa_mm is not to be imported here')

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import torch
from stock_inference import predictions
torch.set_num_threads(1)
scope, folder, picture, out = sys.argv[2:]
config, weights = folder + '/config.py', folder + '/model.pth'
found = predictions(scope, config, weights, picture)
scripts = Path(find_spec(scope).origin).parent / '.mim' / 'tools'
sys.argv = [str(scripts / 'test.py'), config, weights, '--work-dir', out]
runpy.run_path(sys.argv[0], run_name='__main__')
if scope == 'mmpretrain':  # and goes on training from there
    # mmengine keeps one logger for each experiment's name and second, and a test that short would share its log
    named = ['--cfg-options', 'experiment_name=finetuned']
    sys.argv = [str(scripts / 'train.py'), config, '--work-dir', out + '/finetuned', '--no-validate', *named]
    runpy.run_path(sys.argv[0], run_name='__main__')
    log = next(Path(out, 'finetuned').glob('*/*.log')).read_text()
    assert 'Load checkpoint from ' + weights in log and 'Epoch(train) [1]' in log, log[-1000:]
assert 'orepa_mm' not in sys.modules
Path(out, 'predictions.json').write_text(json.dumps(found))
"""


def picture_of(tools, name: str) -> Path:
    return next(path for path in sorted((tools.data / f'{name}-mini').rglob('val*/**/*')) if path.suffix in ('.png', '.jpg'))


@pytest.mark.parametrize('name', few(SCOPES, 'imagenet', 'coco'))
def test_stock_inferencers_and_test_script(name, trained, tools, tmp_path):
    from stock_inference import predictions

    checkpoint, options = trained(name, tools), tools.options(name)
    status, error = tools.run(REPARAMETERIZE, tools.CONFIGS[name], checkpoint, tmp_path / 'deployed', options=options)
    assert status == 0, error
    status, error = tools.test(name, checkpoint, tmp_path / 'test', '--no-reparameterize', '--metrics', tmp_path / 'metrics.json')
    assert status == 0, error
    cfg = Config.fromfile(ROOT / tools.CONFIGS[name])
    cfg.merge_from_dict(options)
    cfg.dump(tmp_path / 'config.py')
    picture = picture_of(tools, name)
    expected = predictions(SCOPES[name], str(tmp_path / 'config.py'), str(checkpoint), str(picture))
    again = predictions(SCOPES[name], str(tmp_path / 'config.py'), str(checkpoint), str(picture), orepa_mm.reparameterize)

    command = [sys.executable, '-W', 'ignore', '-c', STOCK, str(ROOT / 'tests'), SCOPES[name], tmp_path / 'deployed', picture, tmp_path]
    result = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert not result.returncode, result.stderr[-3000:]
    found = json.loads((tmp_path / 'predictions.json').read_text())
    assert len(expected) == len(found) == len(again) > 0
    for a, *others in zip(expected, again, found, strict=True):
        for b in others:  # pixels, probabilities and labels; a float32 network's rounding
            assert b == pytest.approx(a, rel=1e-4, abs=1e-4)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    stock = json.loads(next(tmp_path.glob('2*/2*.json')).read_text())
    compared = [key for key in metrics if 'time' not in key]
    assert compared
    for key in compared:
        assert stock[key] == pytest.approx(metrics[key], abs=1e-3), key


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
    for library, build in dict(
        torchvision=torchvision.models.resnet18, timm=lambda **kwargs: timm.create_model('resnet18', **kwargs)
    ).items():
        folder = tmp_path / library
        result = tools.run(
            REPARAMETERIZE, tools.CONFIGS['imagenet'], tmp_path / 'trained.pth', folder, '--format', library, options=options
        )
        assert result[0] == 0, result[1]
        network = build(num_classes=5).eval()
        network.load_state_dict(torch.load(folder / 'model.pth', weights_only=True), strict=True)
        with torch.no_grad():
            assert torch.allclose(network(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))  # float32 rounding
        facts = json.loads((folder / 'model.json').read_text())
        assert (facts['library'], facts['model'], facts['num_classes']) == (library, 'resnet18', 5)
        assert facts['input']['channels'] == 'RGB' and facts['input']['mean'] == [123.675, 116.28, 103.53]


def refused(result: tuple[int, str], *words: str) -> None:
    status, error = result
    lines = [line for line in error.splitlines() if line.startswith('error: ')]
    assert status == 2 and len(lines) == 1, error
    assert all(word in lines[0] for word in words), lines[0]


def test_bad_input(trained, tools, tmp_path, monkeypatch):
    checkpoint, options = trained('imagenet', tools), tools.options('imagenet')

    def run(source: Path, out: Path, *args: str, name: str = 'imagenet', options: dict = options):
        return tools.run(REPARAMETERIZE, tools.CONFIGS[name], source, out, *args, options=options)

    out = tmp_path / 'out'
    refused(run(checkpoint, out, name='coco', options=tools.options('coco')), 'last.pth', 'does not fit')
    refused(run(tmp_path / 'missing.pth', out), 'missing.pth', 'no such checkpoint')
    refused(run(checkpoint, out, '--ema'), 'no averaged weights', 'EMAHook')
    refused(run(checkpoint, out, '--format', 'torchvision'), 'torchvision has no model')
    deeper = options | {'model.backbone.depth': 34}
    refused(run(checkpoint, out, options=deeper), 'does not fit')
    assert not out.exists()

    status, error = run(checkpoint, out)
    assert status == 0, error
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused(run(checkpoint, out), 'exists', '--force')
    stem = options | {'model.backbone.plain_stem': True}
    refused(run(out / 'model.pth', tmp_path / 'other', options=stem), 're-parameterized already')
    extra = torch.load(checkpoint, weights_only=False)
    extra['state_dict']['neck.weight'] = torch.ones(1)
    torch.save(extra, tmp_path / 'extra.pth')
    refused(run(tmp_path / 'extra.pth', tmp_path / 'other'), 'neck.weight', 'no place')
    (tmp_path / 'file').write_text('mine')
    refused(run(checkpoint, tmp_path / 'file', '--force'), 'is no folder')

    def full(self, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    refused(run(checkpoint, out, '--force'), 'No space left on device')
    refused(run(checkpoint, tmp_path / 'other'), 'No space left on device')
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / 'other').exists() and (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.slow
def test_averaged_weights(tools, tmp_path):
    """What EMAHook saves as the state dict are the averaged weights, and beside it those that were trained."""
    base = ROOT / tools.CONFIGS['imagenet']
    (tmp_path / 'ema.py').write_text(f"_base_ = '{base}'\ncustom_hooks = [dict(type='EMAHook', momentum=0.5)]\n")
    options = tools.options('imagenet')
    status, error = tools.run('tools/train', tmp_path / 'ema.py', '--work-dir', tmp_path / 'run', '--no-validate', options=options)
    assert status == 0, error
    checkpoint = tmp_path / 'run' / 'last.pth'
    states = {}
    for option in ((), ('--ema',), ('--no-ema',)):
        folder = tmp_path / '-'.join(('out', *option))
        status, error = tools.run(REPARAMETERIZE, tmp_path / 'ema.py', checkpoint, folder, *option, options=options)
        assert status == 0, error
        states[option] = torch.load(folder / 'model.pth', weights_only=True)['state_dict']
    saved = torch.load(checkpoint, weights_only=False)
    key = 'head.fc.weight'
    assert torch.equal(states[()][key], saved['state_dict'][key]) and torch.equal(states['--ema',][key], saved['state_dict'][key])
    assert torch.equal(states['--no-ema',][key], saved['ema_state_dict'][f'module.{key}'])
    assert not torch.equal(states['--ema',][key], states['--no-ema',][key])


def test_publishing(trained, tools, tmp_path):
    import hashlib

    checkpoint = trained('imagenet', tools)
    status, error = tools.run('tools/model_converters/publish_model', checkpoint, tmp_path / 'orepa.pth')
    assert status == 0, error
    (published,) = tmp_path.iterdir()
    assert published.name == f'orepa-{hashlib.sha256(published.read_bytes()).hexdigest()[:8]}.pth'
    before, after = torch.load(checkpoint, weights_only=False), torch.load(published, weights_only=True)
    assert set(after) == {'meta', 'state_dict'} and 'optimizer' in before
    assert all(torch.equal(value, after['state_dict'][key]) for key, value in before['state_dict'].items())
    status, error = tools.run('tools/model_converters/publish_model', checkpoint, tmp_path / 'b.pth', '--save-keys', 'meta')
    assert status == 2 and 'no weights' in error and len(list(tmp_path.iterdir())) == 1
