"""What README.md and docs/ tell a reader to type runs, or says what it needs that a test has not."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp
from doc_blocks import LANGUAGES, NEEDS, OTHERS, ROOT, Block, blocks, commands, types_in
from torch import nn

import orepa_mm

ALL = list(blocks())
SHELL = [block for block in ALL if block.language == 'shell']
CONFIGS = [block for block in ALL if block.is_config and not block.needs]
CODE = [block for block in ALL if block.language == 'python' and not block.is_config and not block.needs]
WALKS = sorted({block.page for block in ALL if block.needs == 'minutes' and block.page.parent.name == 'tutorials'})
FRAGMENTS_OF = 'configs/coco/mask-rcnn_orepa-r50_fpn_1x_coco.py'  # what a part of a config is put into


@pytest.fixture(scope='module')
def options():
    """The long options a tool says it has, asked in this process."""
    asked = {}

    def ask(script: str) -> set[str]:
        if script not in asked:
            shown, argv = io.StringIO(), sys.argv
            sys.argv = [script, '--help']
            try:
                with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
                    runpy.run_path(str(ROOT / script), run_name='__main__')
            finally:
                sys.argv = argv
            assert not ended.value.code, script
            asked[script] = set(re.findall(r'--[a-z][\w-]*', shown.getvalue()))
        return asked[script]

    return ask


def test_blocks_are_found_and_say_what_they_are():
    assert len(ALL) > 60 and len(CONFIGS) > 15 and len(CODE) >= 5 and len(WALKS) == 3
    for block in ALL:
        assert block.language in LANGUAGES, f'{block}: no language'
        assert block.needs in NEEDS | {''}, f'{block}: needs {block.needs}'
    listed = re.findall(r'`(?:<!-- needs: )?(\w+)(?: -->)?`', (ROOT / 'docs' / 'code.md').read_text().split('## Documentation')[1])
    assert set(listed) >= NEEDS


@pytest.mark.parametrize('block', SHELL, ids=str)
def test_commands_name_what_there_is(block, options):
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for program, *words in commands(block):
        for word in words:
            if re.match(r'(configs|tools|demo|\.dev_scripts|tests|requirements)/.*\.\w+$', word):
                assert list(ROOT.glob(word)), f'{block}: {word} is not there'
        if program == 'make':
            assert {word for word in words if '=' not in word} <= targets, f'{block}: {words}'
        elif program == 'python' and words and words[0].startswith(('tools/', 'demo/', '.dev_scripts/')):
            given = {word.partition('=')[0] for word in words[1:] if word.startswith('--')}
            assert given <= options(words[0]), f'{block}: {words[0]} has no {given - options(words[0])}'
        elif program.startswith('tools/'):
            assert (ROOT / program).is_file(), f'{block}: {program}'
            tool = 'tools/test.py' if 'test' in program else 'tools/train.py'
            assert {word for word in words if word.startswith('--')} <= options(tool)
        else:
            assert program in OTHERS or program == 'python', f'{block}: {program}'


@pytest.mark.parametrize('block', CONFIGS, ids=str)
def test_configs_load_and_build(block, tmp_path, monkeypatch):
    """A whole config as it stands, a part of one on top of a recipe; every type in it is registered, and its model is built."""
    from mmengine import registry
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import init_default_scope
    from mmengine.utils import get_installed_path

    monkeypatch.chdir(ROOT)
    for each in blocks(block.page):  # bases
        if each.file_name:
            (tmp_path / each.file_name).write_text(each.text)
    text = block.source if '_base_ =' in block.text else f'_base_ = {str(ROOT / FRAGMENTS_OF)!r}\n{block.source}'
    (tmp_path / 'config.py').write_text(text)
    if '::coco/' in block.text and not Path(get_installed_path('orepa_mm'), '.mim').exists():
        with pytest.raises(FileNotFoundError, match='model-index.yml'):  # the page says so of the official mmengine
            Config.fromfile(tmp_path / 'config.py')
        return
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope(cfg.default_scope)
    registries = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    for name in types_in(block.source):
        if name == 'CompressGradients':  # of the page
            continue
        found = []
        for each in registries:
            with each.switch_scope_and_registry(cfg.default_scope) as scoped:
                found.append(scoped.get(name))
        assert any(found) or hasattr(torch.distributed.fsdp, name), f'{block}: {name} is in no registry'
    if 'BranchesHook' in types_in(block.source):
        hooks = (*cfg.default_hooks.values(), *cfg.get('custom_hooks', ()))
        assert registry.HOOKS.build(next(hook for hook in hooks if hook['type'] == 'BranchesHook'))
    if re.search(r'^model = ', block.source, re.MULTILINE):
        if cfg.get('data_preprocessor') and cfg.default_scope == 'mmpretrain':
            cfg.model.data_preprocessor = dict(cfg.data_preprocessor, type='ClsDataPreprocessor')
        model = revert_sync_batchnorm(registry.MODELS.build(cfg.model))
        inside = any(isinstance(module, orepa_mm.OREPAConv2d) for module in model.modules())
        assert inside or block.file_name.startswith('stock_') or 'type' not in block.text


@pytest.mark.parametrize('block', CODE, ids=str)
def test_python_runs(block):
    """With the names the pages use for what a reader has: ``model`` and ``batches``."""
    model = nn.Sequential(orepa_mm.OREPAConv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    if 'attach_branches' in block.text:
        orepa_mm.reparameterize(model.eval())
    batches = [torch.randn(2, 3, 16, 16)]
    model.train()(batches[0])
    names = dict(orepa_mm=orepa_mm, torch=torch, model=model, batches=batches)
    exec(compile(block.source, str(block), 'exec'), names)
    model.eval()(batches[0])
    if 'predictions' in names:
        assert torch.allclose(names['predictions'][0], model(batches[0]), rtol=0, atol=1e-5)


@pytest.fixture
def workspace(tmp_path) -> tuple[Path, dict[str, str]]:
    """A folder that looks like the checkout to a reader, with stock weights where a download would have left them."""
    from torchvision.models import ResNet18_Weights, resnet18

    for name in ('tools', 'configs', 'demo', 'orepa_mm'):
        (tmp_path / name).symlink_to(ROOT / name)
    weights = tmp_path / 'torch' / 'hub' / 'checkpoints' / ResNet18_Weights.DEFAULT.url.rsplit('/', 1)[1]
    weights.parent.mkdir(parents=True)
    torch.save(resnet18().state_dict(), weights)  # drawn at random; a download would be the same file with other numbers
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore "$@"\n')
    (tmp_path / 'bin' / 'python').chmod(0o755)
    path = os.pathsep.join([str(tmp_path / 'bin'), os.environ.get('PATH', '')])
    return tmp_path, dict(os.environ, PATH=path, PYTHONPATH=str(ROOT), TORCH_HOME=str(tmp_path / 'torch'), CUDA_VISIBLE_DEVICES='')


def run_block(block: Block, folder: Path, env: dict[str, str]) -> str:
    if block.file_name:
        (folder / block.file_name).write_text(block.text + '\n')
        return ''
    command = ['bash', '-euo', 'pipefail', '-c', block.text] if block.language == 'shell' else ['python', '-c', block.text]
    result = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, f'{block}:\n{result.stdout[-4000:]}'
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize('page', WALKS, ids=lambda page: page.stem)
def test_a_tutorial_from_its_first_line_to_its_last(page, workspace):
    folder, env = workspace
    said = [run_block(block, folder, env) for block in blocks(page) if block.needs in ('', 'minutes')]
    assert any('kernels train as branches beside the optimizer' in each for each in said)
    (stock,), (trained,) = (list(folder.glob(f'{name}_*.py')) for name in ('stock', 'my'))
    assert 'orepa_mm' not in stock.read_text() and 'BranchesHook' in trained.read_text()


@pytest.mark.slow
@pytest.mark.parametrize('block', [b for b in ALL if b.needs == 'minutes' and b.page not in WALKS], ids=str)
def test_what_takes_minutes(block, workspace):
    run_block(block, *workspace)
