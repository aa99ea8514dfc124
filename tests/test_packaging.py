"""What is installed: configs, tools and the model index beside the code, as mim and mmengine look for them."""

import subprocess
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import ROOT, python

import orepa_mm
from orepa_mm import registry


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp('wheel')
    listing = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    names = listing.stdout.splitlines() if listing.returncode == 0 else []
    names = names or [str(path.relative_to(ROOT)) for path in ROOT.rglob('*') if path.is_file() and '.venv' not in path.parts]
    for name in names:
        if name.split('/')[0] in ('orepa_mm', 'configs', 'tools', 'requirements') or '/' not in name:
            target = folder / 'source' / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    result = python('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, folder / 'source')
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob('*.whl')
    return path


def test_everything_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    configs = [path.relative_to(ROOT) for path in (ROOT / 'configs').rglob('*') if path.suffix in ('.py', '.yml')]
    tools = [path.relative_to(ROOT) for path in (ROOT / 'tools').rglob('*') if path.suffix in ('.py', '.sh')]
    missing = [str(path) for path in (*configs, *tools, Path('model-index.yml')) if f'orepa_mm/.mim/{path}' not in names]
    assert len(configs) > 70 and not missing and 'orepa_mm/py.typed' in names
    assert not [name for name in names if '__pycache__' in name or name.startswith(('tests/', 'demo/'))]


def test_configs_by_their_package(wheel, tmp_path, monkeypatch):
    """From any folder, with the installed package alone."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / 'installed')
    code = """
import orepa_mm
from mmengine.config import Config
print(orepa_mm.__file__)
for base in ('coco/mask-rcnn_orepa-r50_fpn_1x_coco.py', 'imagenet/orepa-resnet18_4xb64-120e_in1k.py'):
    open('config.py', 'w').write(f"_base_ = 'orepa_mm::{base}'")
    print(Config.fromfile('config.py').model.backbone.type)
"""
    result = python('-c', code, cwd=tmp_path, PYTHONPATH=str(tmp_path / 'installed'))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == [str(tmp_path / 'installed' / 'orepa_mm' / '__init__.py'), 'OREPAResNet', 'OREPAResNet']


WITHOUT = """
import sys, types, warnings
def find_spec(name, path=None, target=None):
    if name == 'cv2':
        raise ImportError('no cv2 here')
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))
with warnings.catch_warnings(record=True) as caught:
    import orepa_mm
from mmengine.registry import HOOKS, MODELS
messages = [str(each.message) for each in caught if 'orepa_mm' in str(each.message)]
print(MODELS.get('OREPAConv2d').__name__, 'OREPAHook' in HOOKS, *messages, sep='\\n')
"""


def test_layers_are_there_where_runners_cannot_be_imported():
    layer, registered, *messages = python('-W', 'default', '-c', WITHOUT).stdout.splitlines()
    assert (layer, registered) == ('OREPAConv2d', 'False')
    assert any('mmengine.runner, which cannot be imported: ImportError: no cv2 here' in message for message in messages)


@pytest.mark.parametrize('error', [AssertionError('MMCV==9 is used'), RuntimeError('no operator')])
def test_what_cannot_be_imported_is_passed_over(error, monkeypatch):
    monkeypatch.setattr(registry, 'import_module', Mock(side_effect=error))
    with pytest.warns(UserWarning, match=f'passes over mmseg.registry, which cannot be imported: {type(error).__name__}: {error}'):
        assert not registry.can_import('mmseg.registry')


def test_version_is_one():
    text = (ROOT / 'CITATION.cff').read_text()
    version = next(line.split()[-1] for line in text.splitlines() if line.startswith('version:'))
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    assert version == orepa_mm.__version__ and f'## {version}' in changelog
