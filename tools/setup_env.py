#!/usr/bin/env python3
"""Make a virtual environment with torch, the MM toolboxes and orepa_mm in it.

Run by ``make setup``; needs Python >= 3.10 and the standard library only, and a C++ compiler where mmcv is built. Every step leaves a stamp
in the environment, so a second call takes seconds and an interrupted one goes on at the step it had reached. Nothing is ever deleted.

mmcv's compiled ops fit the torch they were built with and no other. OneDL has wheels for some versions, outside the package index; for the
others mmcv comes as source and is built. What was built is kept apart by torch, Python and GPU, in ``~/.cache/orepa_mm/wheels``; pip's own
cache would hand the wheel of one torch to an environment with another.
Where torch sees a GPU, the ops are built for it, with the ``nvcc`` that torch finds. ``FORCE_CUDA=1`` builds them where there is no GPU,
for ``TORCH_CUDA_ARCH_LIST``.

Environment variables:
    VENV      where the environment goes (default: ``.venv`` in the checkout).
    MM        ``onedl`` (default) or ``openmmlab``: the distribution of mmengine, mmcv, mmdet, mmseg and mmpretrain.
    TORCH     what to install instead of the tested torch, e.g. ``TORCH="torch==2.1.2 torchvision==0.16.2 numpy<2"``.
    MAX_JOBS  how many compilers mmcv's build runs at once (default: the number of cores).
    MMCV_BASE_URL  where OneDL's wheels of mmcv are looked for, as onedl-mim does; empty to build it in any case.
"""

from __future__ import annotations  # an old Python must get as far as the message that it is too old

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
EXTRAS = ('deploy', 'docs', 'test')  # of setup.py
MMCV = dict(onedl='onedl-mmcv', openmmlab='mmcv')
MMCV_WHEELS = 'https://mmwheels.onedl.ai'
FIRST_TORCH_WITH_CXX20 = (2, 14)  # its headers refuse the C++17 that mmcv's setup.py asks for
BUILD_TOOLS = ('pip', 'setuptools>=80', 'wheel', 'packaging', 'ninja', 'psutil')

# Prints what mmcv's build depends on.
PROBE = """
import json, sysconfig, torch
from torch.utils.cpp_extension import CUDA_HOME
gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
print(json.dumps(dict(
    torch=torch.__version__,
    cuda=torch.version.cuda,
    nvcc=CUDA_HOME,
    gpus=sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in gpus}),
    python=f'cp{sysconfig.get_config_var("py_version_nodot")}-{sysconfig.get_platform()}',
)))
"""
ANEW = 'delete {path} and run `make setup` again'
BUILD = '`rm -r {wheels}`, delete {path} and run `MMCV_BASE_URL= make setup`, which builds them'
CHECKS = {  # import statement: what to do when it fails
    'import torchvision': 'torch and torchvision do not belong together: ' + ANEW,
    'import cv2': 'OpenCV cannot load its libraries: install libGL (Debian: libgl1, libglib2.0-0)',
    'import mmcv.ops': 'mmcv has no compiled ops that run: check that a C++ compiler does, then ' + BUILD,
    'import mmdet.apis, mmseg.apis, mmpretrain.apis, orepa_mm': ANEW,
}
GPU_OP = 'import torch, mmcv.ops; mmcv.ops.nms(torch.ones(1, 4).cuda(), torch.ones(1).cuda(), 0.5)'
GPU_CHECKS = {GPU_OP: "mmcv's ops do not run on this GPU: " + BUILD + ', or do without it: `export CUDA_VISIBLE_DEVICES=`'}


class SetupError(RuntimeError):
    """A step failed; the message says which and what to do."""


def say(message: str) -> None:
    print(f'[setup] {message}', flush=True)


def wheel_folder(machine: dict, environ: Mapping[str, str]) -> Path:
    """Where mmcv's wheel for this torch, Python and GPU is kept; ``machine`` is what :data:`PROBE` prints."""
    cache = environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(cache) / 'orepa_mm' / 'wheels' / f'torch-{machine["torch"]}-{machine["python"]}-{ops_target(machine, environ)}'


def mmcv_index(machine: dict, environ: Mapping[str, str]) -> str:
    """The page with OneDL's wheels of mmcv for this torch and GPU, whether it exists or not; ``''`` where none is to be looked for."""
    base, (major, minor) = environ.get('MMCV_BASE_URL', MMCV_WHEELS), machine['torch'].split('.')[:2]
    if not base or environ.get('TORCH_CUDA_ARCH_LIST'):  # for which only a build is sure to be
        return ''
    device = 'cpu' if ops_target(machine, environ) == 'cpu' else f'cu{machine["cuda"]}'.replace('.', '')
    return f'{base}/{device}-torch{major}{minor}0/simple/onedl-mmcv/index.html'


def ops_target(machine: dict, environ: Mapping[str, str]) -> str:
    """What mmcv's setup compiles for: ``'cpu'``, or ``'gpu'`` with the architectures in it."""
    if not machine['gpus'] and environ.get('FORCE_CUDA') != '1':
        return 'cpu'
    # Without a GPU and a list, torch's extension builder takes all architectures that torch itself was built for.
    architectures = environ.get('TORCH_CUDA_ARCH_LIST') or ' '.join(machine['gpus']) or 'all'
    return 'gpu-' + '-'.join(re.findall(r'[\w.+]+', architectures))


class Environment:
    """The virtual environment being filled.

    Args:
        path: Folder of the environment.
        mm: Name of the MM distribution, one of :data:`MMCV`.
        torch: Requirement strings of torch and torchvision, or an empty list for the tested ones.
    """

    def __init__(self, path: Path, mm: str, torch: list[str]) -> None:
        self.path, self.mm = path, mm
        self.python = path / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        self.stamps, self.log = path / 'setup-stamps', path / 'setup.log'
        lines = (REQUIREMENTS / f'tested-{mm}.txt').read_text().splitlines()
        lines = torch + [line for line in lines if line and not line.startswith('#') and not (torch and line.startswith('torch'))]
        self.constraints = '\n'.join(lines) + '\n'
        self.torch = torch or [line for line in lines if line.startswith('torch')]

    def create(self) -> None:
        """Make the environment, or go on with the one that is there when it carries our stamps.

        Raises:
            SetupError: When the folder holds anything else, or an environment that does not run.
        """
        try:
            if self.path.exists() and not self.stamps.is_dir() and any(self.path.iterdir()):
                raise SetupError(
                    f'VENV={self.path} holds files that `make setup` did not put there, and nothing was changed; choose a folder that '
                    'does not exist, as in `VENV=.venv make setup`, or delete this one if you need nothing in it.'
                )
            self.stamps.mkdir(parents=True, exist_ok=True)  # first, so that whatever is interrupted later is known to be ours
        except OSError as error:
            raise SetupError(f'{self.path} cannot be used ({error}); choose another folder, as in `VENV=.venv make setup`.') from None
        if not (self.stamps / 'venv').exists():
            say(f'making the virtual environment {self.path} with Python {sys.version.split()[0]}')
            result = subprocess.run([sys.executable, '-m', 'venv', str(self.path)], capture_output=True, text=True)
            if result.returncode:
                raise SetupError(
                    f'`{sys.executable} -m venv` failed; on Debian or Ubuntu install python3-venv.\n{result.stdout}{result.stderr}'
                )
            (self.stamps / 'venv').touch()
        message = self.runs(f'import os, sys, pip; assert os.path.samefile(sys.prefix, {str(self.path)!r})')
        if message:
            raise SetupError(
                f'the Python of {self.path} does not run any more ({message}); put the Python it was made with back, '
                'or delete the folder and run `make setup` again.'
            )

    def pip(self, *args: str, title: str, command: str = 'install', progress: bool = False) -> None:
        """Run pip; show its download lines, or with ``progress`` the ``[n/m]`` lines of a compiled build."""
        constraints = self.path / 'setup-constraints.txt'
        constraints.write_text(self.constraints)
        line = [str(self.python), '-m', 'pip', '--disable-pip-version-check', command, '--prefer-binary', '-c', str(constraints), *args]
        env = dict(os.environ, PIP_NO_INPUT='1')
        if progress:
            jobs = os.environ.get('MAX_JOBS', str(os.cpu_count() or 2))
            # Debug information doubles the work of the compiler and nobody reads it.
            env.update(MMCV_WITH_OPS='1', MAX_JOBS=jobs, CFLAGS=f'{os.environ.get("CFLAGS", "")} -g0'.strip(), PYTHONUNBUFFERED='1')
        say(title)
        start, shown = time.monotonic(), 0.0
        with self.log.open('a') as log:
            log.write(f'$ {" ".join(line)}\n')
            options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
            process = subprocess.Popen(line, env=env, cwd=ROOT, **options)
            for line in process.stdout:
                log.write(line)
                now = time.monotonic() - start
                built = re.match(r'\s*\[(\d+)/(\d+)\]', line)
                if progress and built and now - shown > 10:
                    done, total = map(int, built.groups())
                    say(f'  mmcv: {done} of {total} files compiled, about {now / done * (total - done) / 60:.0f} minutes to go')
                    shown = now
                elif not progress and re.match(r'\s*(Downloading|Using cached|Building wheel for|Installing collected)', line):
                    say('  ' + line.strip()[:150])
        if process.wait():
            tail = '\n'.join(self.log.read_text(errors='replace').splitlines()[-25:])
            raise SetupError(
                f'pip failed at the step "{title}". The end of {self.log}:\n{tail}\n'
                'Mend what it names (network, disk space, compiler) and run `make setup` again: finished steps are kept.'
            )

    def step(self, name: str, key: str, action: Callable[[], object]) -> None:
        """Run ``action`` unless the stamp of step ``name`` holds ``key`` already."""
        if not self.done(name, key):
            action()
            partial = self.stamps / f'{name}.tmp'
            partial.write_text(hashlib.sha256(key.encode()).hexdigest())
            partial.replace(self.stamps / name)

    def done(self, name: str, key: str) -> bool:
        stamp = self.stamps / name
        return stamp.exists() and stamp.read_text() == hashlib.sha256(key.encode()).hexdigest()

    def runs(self, statement: str) -> str:
        """Return '' when ``statement`` runs in the environment, else the last line of what it printed."""
        try:
            result = subprocess.run([str(self.python), '-W', 'ignore', '-c', statement], capture_output=True, text=True, cwd=self.path)
        except OSError as error:
            return str(error)
        return '' if result.returncode == 0 else (result.stderr.strip().splitlines() or ['no message'])[-1]

    def probe(self) -> dict:
        """What :data:`PROBE` prints."""
        result = subprocess.run([str(self.python), '-W', 'ignore', '-c', PROBE], capture_output=True, text=True, cwd=self.path)
        if result.returncode:
            message = (result.stderr.strip().splitlines() or ['no message'])[-1]
            raise SetupError(f'torch does not import: {message}; delete {self.path} and run `make setup` again.')
        return json.loads(result.stdout.splitlines()[-1])

    def step_mmcv(self, requirement: str, key: str, machine: dict) -> None:
        """Install mmcv unless it is there, with ops for the GPU where ``machine`` has one."""
        target = ops_target(machine, os.environ)
        if target == 'cpu':
            # Ops built for a GPU include the CPU's, so they stay when a machine without a GPU uses the same environment.
            self.step('mmcv', key, lambda: self._install_mmcv(requirement, machine))
            return

        def install() -> None:
            if not (machine['gpus'] and self.done('mmcv', key)) or self.runs(GPU_OP):
                self._install_mmcv(requirement, machine)

        self.step('mmcv-gpu', key + target, install)
        self.step('mmcv', key, lambda: None)

    def _install_mmcv(self, requirement: str, machine: dict) -> None:
        """Install mmcv from the wheel for this torch: the one that is kept, or OneDL's, or one that is built here."""
        for stamp in [*self.stamps.glob('mmcv*'), *self.stamps.glob('check*')]:
            stamp.unlink()
        package = MMCV[self.mm]
        version = re.search(rf'^{package}=+(\S+)$', self.constraints, re.MULTILINE).group(1)
        folder = wheel_folder(machine, os.environ)
        kept = next(folder.glob(f'{package.replace("-", "_")}-{version}-*.whl'), None)
        wheel = kept or self._download_mmcv(requirement, machine) or self._build_mmcv(requirement, folder, machine)
        # Another torch's build of the same version may be installed, which pip takes for the same thing.
        self.pip('--force-reinstall', '--no-deps', str(wheel), title=f'installing mmcv from {wheel.parent}')

    def _download_mmcv(self, requirement: str, machine: dict) -> Path | None:
        index, folder = mmcv_index(machine, os.environ), self.path / 'wheels' / wheel_folder(machine, os.environ).name
        if self.mm != 'onedl' or not index:
            return None
        options = ('--no-deps', '--only-binary', ':all:', '--no-index', '--find-links', index, '--retries', '0', '--timeout', '15')
        try:
            self.pip(*options, '--dest', str(folder), requirement, command='download', title=f'looking for a wheel of mmcv at {index}')
        except SetupError:  # for most versions there is none
            say('  there is none')
            return None
        return next(folder.glob('onedl_mmcv-*.whl'))

    def _build_mmcv(self, requirement: str, folder: Path, machine: dict) -> Path:
        if not any(map(shutil.which, (os.environ.get('CXX', 'c++').split()[0], 'g++', 'clang++'))):
            raise SetupError('no C++ compiler found to build the ops of mmcv with: install one (Debian: apt-get install g++) or set CXX.')
        if machine['cuda'] and machine['nvcc'] is None and ops_target(machine, os.environ) != 'cpu':
            raise SetupError(
                f"mmcv's GPU ops need the nvcc of torch's CUDA {machine['cuda']}, and none was found: install the CUDA toolkit, "
                '`export CUDA_HOME=` its folder and run `make setup` again; or do without the GPU: `export CUDA_VISIBLE_DEVICES=`.'
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:  # no home folder, or one that cannot be written to
            folder = self.path / 'wheels'
            folder.mkdir(exist_ok=True)
        # pip's cache does not say with which torch a wheel was built.
        options = ('--no-build-isolation', '--no-deps', '--no-cache-dir', '--no-binary', MMCV[self.mm])
        with tempfile.TemporaryDirectory(prefix='building-', dir=folder) as building, tempfile.TemporaryDirectory() as source:
            if tuple(map(int, machine['torch'].split('.')[:2])) >= FIRST_TORCH_WITH_CXX20:
                self.pip(*options, '--dest', source, requirement, command='download', title="downloading mmcv's source")
                shutil.unpack_archive(next(Path(source).glob('*.tar.gz')), source)
                script = next(Path(source).glob('*/setup.py'))
                script.write_text(script.read_text().replace("'-std=c++17'", ''))  # torch's extension builder then adds its own
                requirement = str(script.parent)
            title = "building mmcv's compiled ops: 5 to 20 minutes on 2 cores, once for each version of torch"
            self.pip('-v', *options, '--wheel-dir', building, requirement, command='wheel', progress=True, title=title)
            wheel = next(Path(building).glob('*.whl'))
            return wheel.replace(folder / wheel.name)  # whole or not at all, also when two environments are made at once

    def check(self, checks: dict[str, str], machine: dict) -> None:
        failed = []
        for statement, remedy in checks.items():
            message = self.runs(statement)
            say(f'  {"ok    " if not message else "FAILED"} {statement}')
            if message:
                remedy = remedy.format(wheels=wheel_folder(machine, os.environ), path=self.path)
                failed.append(f'`{statement}`: {message}\n    what to do: {remedy}')
        if failed:
            raise SetupError('these checks fail:\n  ' + '\n  '.join(failed))

    def installed(self) -> str:
        """The names and versions of all installed distributions, as one string."""
        site = list(self.path.glob('lib/python*/site-packages')) + [self.path / 'Lib' / 'site-packages']
        return '\n'.join(sorted(p.name for folder in site for p in folder.glob('*.dist-info')))


def main() -> None:
    mm = os.environ.get('MM') or 'onedl'
    if mm not in MMCV:
        raise SetupError(f'MM={mm} is unknown; choose from {", ".join(MMCV)}.')
    if sys.version_info < (3, 10):
        raise SetupError(f'Python >= 3.10 is needed and {sys.executable} is older; choose one with `PYTHON=python3.12 make setup`.')
    env = Environment(Path(os.environ.get('VENV') or ROOT / '.venv').resolve(), mm, (os.environ.get('TORCH') or '').split())
    env.create()
    if (env.stamps / 'distribution').exists() and not env.done('distribution', mm):
        raise SetupError(
            f'{env.path} holds another MM distribution than {mm}; both provide the same modules. '
            f'Choose another folder with `VENV=.venv-{mm} MM={mm} make setup`.'
        )
    env.step('distribution', mm, lambda: None)

    packages = (REQUIREMENTS / f'{mm}.txt').read_text()
    mmcv = next(line for line in packages.splitlines() if line.startswith(MMCV[mm]))
    others = [line for line in packages.splitlines() if line and line != mmcv]
    key = env.constraints + packages
    env.step('build-tools', key, lambda: env.pip(*BUILD_TOOLS, title='installing the build tools'))
    title = 'installing torch and torchvision (the CUDA build: several GB, a few minutes)'
    env.step('torch', key, lambda: env.pip(*env.torch, title=title))
    machine = env.probe()
    env.step_mmcv(mmcv, key, machine)
    title = 'installing mmengine, mmdet, mmsegmentation and mmpretrain'
    env.step('toolboxes', key, lambda: env.pip('--no-build-isolation', mmcv, *others, title=title))
    if env.runs('import cv2'):
        # Without libGL (servers, containers) only the headless build of OpenCV can be imported; it provides the same module.
        title = 'no libGL here: installing the headless OpenCV'
        env.pip('--force-reinstall', '--no-deps', 'opencv-python-headless', title=title)
    asked = ''.join(path.read_text() for path in (ROOT / 'setup.py', *(REQUIREMENTS / f'{name}.txt' for name in EXTRAS)))
    package = ('--no-build-isolation', '-e', f'.[{",".join(EXTRAS)}]')
    env.step('package', key + asked, lambda: env.pip(*package, title='installing orepa_mm'))
    env.step('check', env.installed(), lambda: env.check(CHECKS, machine))
    if machine['gpus']:
        env.step('check-gpu', env.installed() + ops_target(machine, os.environ), lambda: env.check(GPU_CHECKS, machine))
    say(f'ready: {env.path} (activate with `source {env.path}/bin/activate`)')


if __name__ == '__main__':
    try:
        main()
    except (SetupError, OSError) as error:
        sys.exit(f'[setup] error: {error}')
    except KeyboardInterrupt:
        sys.exit('\n[setup] interrupted; run `make setup` again to go on.')
