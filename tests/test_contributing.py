"""The worked examples of CONTRIBUTING.md, carried out in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / 'CONTRIBUTING.md').read_text()
BLOCK = re.compile(r'^```python (title|append)="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CHECK_RECIPE = """
import sys
sys.path[:0] = ['.dev_scripts']
import list_configs
import orepa_mm
from orepa_mm.deploy.loading import build_model
(name,) = list_configs.configs(['configs/imagenet/acnet-resnet34*'])
print(' | '.join(list_configs.description(name)))
model = build_model(list_configs.read(name)).eval()
count = sum(type(layer).__name__ == 'ACNetConv2d' for layer in model.modules())
assert count == 32 and orepa_mm.__file__.startswith(sys.argv[1]), (count, orepa_mm.__file__)
"""


@pytest.fixture(scope='module')
def copy(tmp_path_factory) -> Path:
    """The repository with the page's files written and its lines appended."""
    root = tmp_path_factory.mktemp('copy')
    for name in ('orepa_mm', 'configs', '.dev_scripts', 'tools', 'tests'):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__', '.mim', 'data'))
    shutil.copy(ROOT / 'pyproject.toml', root)
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count('```python')
    for kind, name, text in blocks:
        path = root / name
        assert path.exists() == (kind == 'append'), f'{name}: an example adds a file that is there, or appends to one that is not'
        with open(path, 'a') as file:
            file.write(text)
    return root


def run(copy: Path, *command: str) -> str:
    env = dict(os.environ, PYTHONPATH=str(copy), OMP_NUM_THREADS='1')
    result = subprocess.run([sys.executable, *command], cwd=copy, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_a_method_and_a_backbone(copy):
    """Their own tests, and what every method must do but for the config that the page leaves to the reader."""
    chosen = 'DOConv and not stock or deployed or case'
    tests = ('tests/test_do_conv.py', 'tests/test_cifar_backbone.py', 'tests/test_methods.py')
    output = run(copy, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', *tests, '-k', chosen)
    assert int(re.search(r'(\d+) passed', output)[1]) > 100  # what the method's case inherits, and its networks


def test_a_recipe(copy):
    output = run(copy, '-c', CHECK_RECIPE, str(copy))
    assert 'ResNet-34 | ACNet | ImageNet-1k | 120 epochs, 4 x 64' in output


def test_the_examples_are_in_the_style_of_the_house(copy):
    files = sorted({name for _, name, _ in BLOCK.findall(PAGE)})
    run(copy, '-m', 'ruff', 'check', *files, '--ignore', 'I001')  # appended imports are sorted by who adds them for good
    run(copy, '-m', 'ruff', 'format', '--check', *files)


def test_the_targets_named_are_there():
    makefile = (ROOT / 'Makefile').read_text()
    for target in set(re.findall(r'`?make ([\w-]+)', PAGE)):
        assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
    for name in re.findall(r'`?((?:tests|docs|layers|orepa_mm|tools|\.dev_scripts)/[\w/]+\.(?:py|md))', re.sub(BLOCK, '', PAGE)):
        assert (ROOT / name).exists() or (ROOT / 'orepa_mm' / name).exists(), name
