"""``make setup``: which folders it may touch, and which mmcv it installs. Nothing is installed."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setup_env
from conftest import python
from setup_env import Environment, SetupError, ops_target, wheel_folder

CPU = dict(torch='2.13.0+cu130', cuda='13.0', nvcc=None, gpus=[], python='cp311-linux-x86_64')
GPU = dict(CPU, gpus=['9.0'])
IN_PLACE = 'import sys, pip; assert sys.prefix == sys.exec_prefix != sys.base_prefix and pip.__file__.startswith(sys.prefix)'


def contents(folder: Path) -> dict:
    """Everything below ``folder`` but what Python compiles on import: links' targets, files' bytes and times."""
    return {
        path.relative_to(folder): os.readlink(path) if path.is_symlink() else (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob('*')
        if (path.is_symlink() or not path.is_dir()) and '__pycache__' not in path.parts
    }


@pytest.fixture
def made(monkeypatch) -> list[Path]:
    """The folders in which environments were made: with a pip that can be imported, which is all of it that is asked for here."""
    folders = []
    run = subprocess.run

    def quick(command, **options):
        if command[1:3] != ['-m', 'venv']:
            return run(command, **options)
        result = run([*command[:-1], '--without-pip', command[-1]], **options)
        folder = Path(command[-1])
        for site in [*folder.glob('lib/python*/site-packages'), *folder.glob('Lib/site-packages')]:
            (site / 'pip.py').touch()
        folders.append(folder)
        return result

    monkeypatch.setattr(setup_env.subprocess, 'run', quick)
    return folders


def environment(path: Path) -> Environment:
    return Environment(path, 'onedl', [])


class TestFolder:
    @pytest.mark.parametrize('start', ['missing', 'missing below a missing one', 'empty'])
    def test_is_made_where_nothing_is_and_gone_on_with(self, tmp_path, made, start):
        path = tmp_path / 'a' / 'b' if 'below' in start else tmp_path / 'a'
        if start == 'empty':
            path.mkdir()
        env = environment(path)
        env.create()
        assert env.runs(IN_PLACE) == ''
        before = contents(path)
        env.create()
        assert contents(path) == before and made == [path]

    def test_of_somebody_else_is_left_alone(self, tmp_path, made):
        (tmp_path / 'bin').mkdir()
        (tmp_path / 'bin' / 'python').write_text('theirs')
        (tmp_path / '.hidden').write_text('years of work')
        before = contents(tmp_path)
        with pytest.raises(SetupError, match='did not put there, and nothing was changed; choose a folder'):
            environment(tmp_path).create()
        result = python(setup_env.__file__, VENV=str(tmp_path), CXX=sys.executable)  # the command line says so in one line
        assert result.returncode == 1 and result.stderr.count('\n') == 1 and str(tmp_path) in result.stderr
        for name in ('.hidden', '.hidden/below'):  # a file is no folder
            with pytest.raises(SetupError, match='cannot be used'):
                environment(tmp_path / name).create()
        assert contents(tmp_path) == before and made == []

    def test_interrupted_is_gone_on_with(self, tmp_path, made, monkeypatch):
        env = environment(tmp_path / 'env')
        with monkeypatch.context() as patch:

            def interrupt(command, **options):
                env.python.parent.mkdir()
                env.python.symlink_to(sys.executable)
                raise KeyboardInterrupt

            patch.setattr(setup_env.subprocess, 'run', interrupt)
            with pytest.raises(KeyboardInterrupt):
                env.create()
        (env.path / 'notes.txt').write_text('theirs')
        env.create()
        assert env.runs(IN_PLACE) == '' and made == [env.path]
        assert (env.path / 'notes.txt').read_text() == 'theirs'

    @pytest.mark.parametrize('fault', ['link', 'program'])
    def test_whose_python_is_gone_is_left_alone(self, tmp_path, made, fault):
        env = environment(tmp_path / 'env')
        env.create()
        env.python.unlink()
        if fault == 'link':
            env.python.symlink_to(tmp_path / 'removed')
        else:
            env.python.write_text('#!/removed\n')
            env.python.chmod(0o755)
        before = contents(env.path)
        with pytest.raises(SetupError, match='does not run any more .* or delete the folder'):
            env.create()
        assert contents(env.path) == before and len(made) == 1


class TestMmcv:
    """Which wheel goes into an environment, with a pip that writes down what it is asked for."""

    @pytest.fixture(autouse=True)
    def machine(self, tmp_path, monkeypatch):
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
        monkeypatch.setenv('MMCV_BASE_URL', '')
        for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST'):
            monkeypatch.delenv(name, raising=False)

    @pytest.fixture
    def env(self, tmp_path):
        """An environment that installs for a machine, notes what it asks pip for, and gives that back."""

        def make(name: str = 'env') -> Environment:
            env = environment(tmp_path / name)
            env.stamps.mkdir(parents=True)
            calls, env.works_on_gpu = [], False
            env.runs = lambda statement: '' if env.works_on_gpu else 'no such op'

            def pip(*args, command='install', **_):
                calls.append(command)
                if command == 'download':
                    release = tmp_path / 'release' / 'onedl_mmcv-2.3.6'
                    release.mkdir(parents=True)
                    (release / 'setup.py').write_text("args = ['-Wall', '-std=c++17']\n")
                    shutil.make_archive(str(Path(args[args.index('--dest') + 1]) / release.name), 'gztar', release.parent, release.name)
                elif command == 'wheel':
                    env.source = args[-1]
                    if os.path.isdir(env.source):
                        env.source = (Path(env.source) / 'setup.py').read_text()
                    assert '--no-cache-dir' in args
                    (Path(args[args.index('--wheel-dir') + 1]) / 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl').touch()
                else:
                    assert '--force-reinstall' in args and Path(args[-1]).is_file()

            def install(machine: dict = CPU) -> list[str]:
                calls.clear()
                env.step_mmcv('onedl-mmcv>=2.3.6', 'key', machine)
                return calls

            env.pip, env.install = pip, install
            return env

        return make

    def test_is_built_once_for_each_torch_and_checked_again(self, env):
        first = env()
        first.step('check', 'installed', lambda: None)
        assert first.install() == ['wheel', 'install'] and not first.done('check', 'installed')
        assert first.install() == []
        assert env('second').install() == ['install']
        assert env('other').install(dict(CPU, torch='2.6.0+cu124')) == ['wheel', 'install']

    @pytest.mark.parametrize('torch', ['2.14.1+cu130', '3.0.0'])
    def test_source_leaves_the_language_standard_to_a_torch_that_needs_a_newer_one(self, env, tmp_path, torch):
        made = env()
        assert made.install(dict(CPU, torch=torch)) == ['download', 'wheel', 'install']
        assert made.source == "args = ['-Wall', ]\n"
        assert [path.suffix for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == ['.whl']

    def test_build_that_fails_leaves_no_wheel(self, env, tmp_path):
        made = env()
        pip = made.pip

        def fail(*args, **options):
            pip(*args, **options)
            raise SetupError

        made.pip = fail
        with pytest.raises(SetupError):
            made.install()
        assert not list((tmp_path / 'cache').rglob('*.whl')) and not made.done('mmcv', 'key')

    def test_cache_that_cannot_be_written_to(self, env, tmp_path):
        (tmp_path / 'cache').write_text('not a folder')
        made = env()
        assert made.install() == ['wheel', 'install'] and list(made.path.glob('wheels/*.whl'))

    def test_follows_the_machine_to_a_gpu_and_stays(self, env):
        made, ready = env(), dict(GPU, nvcc='/usr/local/cuda')
        made.install()
        with pytest.raises(SetupError, match="nvcc of torch's CUDA 13.0"):
            made.install(GPU)
        assert made.install(ready) == ['wheel', 'install'] and made.install(ready) == made.install(CPU) == []

    def test_that_runs_on_the_gpu_already_stays(self, env):
        made = env()
        made.step('mmcv', 'key', lambda: None)
        made.works_on_gpu = True
        assert made.install(GPU) == [] and made.done('mmcv', 'key')


def test_a_wheel_of_onedl_is_taken_where_there_is_one(tmp_path, monkeypatch):
    """By pip itself, from a folder in the place of the host."""
    name, page = 'onedl_mmcv-2.3.6-py3-none-any.whl', tmp_path / 'cpu-torch2130/simple/onedl-mmcv/index.html'
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="{name}">{name}</a>')
    with zipfile.ZipFile(page.parent / name, 'w') as wheel:
        wheel.writestr('onedl_mmcv-2.3.6.dist-info/METADATA', 'Metadata-Version: 2.1\nName: onedl-mmcv\nVersion: 2.3.6\n')
        wheel.writestr('onedl_mmcv-2.3.6.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    monkeypatch.setenv('MMCV_BASE_URL', tmp_path.as_uri())
    env = environment(tmp_path / 'env')
    env.path.mkdir()
    env.python = Path(sys.executable)
    assert env._download_mmcv('onedl-mmcv>=2.3.6', CPU).name == name
    assert env._download_mmcv('onedl-mmcv>=2.3.6', dict(CPU, torch='2.8.0')) is None


def test_where_wheels_of_onedl_are_looked_for():
    assert setup_env.mmcv_index(GPU, {}) == f'{setup_env.MMCV_WHEELS}/cu130-torch2130/simple/onedl-mmcv/index.html'
    assert not setup_env.mmcv_index(GPU, dict(TORCH_CUDA_ARCH_LIST='8.0')) and not setup_env.mmcv_index(GPU, dict(MMCV_BASE_URL=''))
    assert 'cu130' not in setup_env.mmcv_index(dict(GPU, cuda=None), {})  # torch for an AMD GPU: there is no such page


def test_ops_target():
    assert ops_target(CPU, {}) == 'cpu'
    assert ops_target(GPU, {}) == 'gpu-9.0'
    assert ops_target(CPU, dict(FORCE_CUDA='1')) == 'gpu-all'
    assert ops_target(GPU, dict(TORCH_CUDA_ARCH_LIST='8.0;9.0+PTX')) == 'gpu-8.0-9.0+PTX'


def test_wheels_are_kept_apart(tmp_path):
    machines = [CPU, GPU, *(dict(CPU, **{key: 'other'}) for key in ('torch', 'python'))]
    folders = [wheel_folder(machine, dict(XDG_CACHE_HOME=str(tmp_path))) for machine in machines]
    assert len(set(folders)) == len(folders) and all(tmp_path in folder.parents for folder in folders)


def test_probe_prints_what_is_asked_of_it_and_needs_the_standard_library_only():
    result = python('-c', setup_env.PROBE)
    assert json.loads(result.stdout).keys() == CPU.keys()
    tree = ast.parse(Path(setup_env.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module.split('.')[0] for module in modules} <= sys.stdlib_module_names
