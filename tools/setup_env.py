#!/usr/bin/env python3
"""Make a virtual environment with torch, the MM toolboxes and orepa_mm in it.

Run by ``make setup``; needs Python >= 3.10, a C++ compiler and the standard library only. Every step leaves a stamp in the
environment, so a second call takes seconds and an interrupted one goes on at the step it had reached. A folder that holds
anything else is left alone.

mmcv comes as source, and its compiled ops fit the torch they were built with and no other. The wheels are therefore kept apart by
torch, Python and GPU, in ``~/.cache/orepa_mm/wheels``; pip's own cache would hand the wheel of one torch to an environment with another.

Where torch sees a GPU, mmcv's ops are built for it, with the ``nvcc`` torch's extension builder finds (``CUDA_HOME``, ``PATH``,
``/usr/local/cuda``). ``FORCE_CUDA=1`` builds them where there is no GPU, for ``TORCH_CUDA_ARCH_LIST``.

Environment variables:
    VENV      where the environment goes (default: ``.venv`` in the checkout).
    MM        ``onedl`` (default) or ``openmmlab``: the distribution of mmengine, mmcv, mmdet, mmseg and mmpretrain.
    TORCH     what to install instead of the tested torch, e.g. ``TORCH="torch==2.12.1 torchvision==0.27.1"``.
    MAX_JOBS  how many compilers mmcv's build runs at once (default: the number of cores).
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
DISTRIBUTIONS = ('onedl', 'openmmlab')
EXTRAS = ('deploy', 'docs', 'test')  # of setup.py
MMCV_PACKAGE = dict(onedl='onedl-mmcv', openmmlab='mmcv')
FIRST_TORCH_WITH_CXX20 = (2, 14)  # its headers refuse the C++17 that mmcv's setup.py asks for
# All that venv and pip put into an environment, and what is written here.
PARTS = ('bin', 'include', 'lib', 'lib64', 'share', 'etc', 'Scripts', 'Include', 'Lib', 'pyvenv.cfg', 'wheels', 'setup.log')

# Prints what mmcv's build depends on.
PROBE = """
import json, sysconfig, torch
gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
print(json.dumps(dict(
    torch=torch.__version__,
    cuda=torch.version.cuda,
    gpus=sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in gpus}),
    python=f'cp{sysconfig.get_config_var("py_version_nodot")}-{sysconfig.get_platform()}',
)))
"""

CHECKS = (  # import statement, what to do when it fails
    ('import torch', 'delete the environment and run `make setup` again'),
    (
        'import torchvision',
        'torch and torchvision do not belong together: delete the environment and run `make setup` again',
    ),
    ('import cv2', 'OpenCV cannot load its libraries: install libGL (Debian: libgl1, libglib2.0-0)'),
    ('import mmengine', 'run `make setup` again'),
    (
        'import mmcv.ops',
        'mmcv was built without its compiled ops, or for another system: check that a C++ compiler runs, '
        'then `rm -r {wheels} {stamps}/mmcv*` and run `make setup` again, which builds them anew',
    ),
    ('import mmdet.apis', 'run `make setup` again'),
    ('import mmseg.apis', 'run `make setup` again'),
    ('import mmpretrain.apis', 'run `make setup` again'),
    ('import orepa_mm', 'run `make setup` again'),
)
GPU_OP = 'import torch, mmcv.ops; mmcv.ops.nms(torch.ones(1, 4).cuda(), torch.ones(1).cuda(), 0.5)'
GPU_CHECKS = (
    (
        GPU_OP,
        "mmcv's ops do not run on this GPU: `rm -r {wheels} {stamps}/mmcv*` and run `make setup` again, which builds them anew, "
        'or do without the GPU: `export CUDA_VISIBLE_DEVICES=` before all make commands',
    ),
)


class SetupError(RuntimeError):
    """A step failed; the message says which and what to do."""


def say(message: str) -> None:
    print(f'[setup] {message}', flush=True)


def minutes(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def find_nvcc(environ: Mapping[str, str], which: Callable = shutil.which, default: str = '/usr/local/cuda') -> Path | None:
    """The ``nvcc`` that torch's extension builder would call; it looks in the same places in the same order."""
    home = environ.get('CUDA_HOME') or environ.get('CUDA_PATH')
    if not home:
        found = which('nvcc')
        home = Path(found).parent.parent if found else default
    nvcc = Path(home) / 'bin' / ('nvcc.exe' if os.name == 'nt' else 'nvcc')
    return nvcc if nvcc.is_file() else None


def nvcc_version(nvcc: Path) -> str:
    """The CUDA version of ``nvcc``, or '' when it does not tell."""
    try:
        output = subprocess.run([str(nvcc), '--version'], capture_output=True, text=True).stdout
    except OSError:
        return ''
    found = re.search(r'release (\d+\.\d+)', output)
    return found.group(1) if found else ''


def nvcc_problem(cuda: str | None, nvcc: Path | None, version: str) -> str:
    """Return '' when mmcv's ops can be built for the GPU, else one line that says what is missing and what to do.

    Args:
        cuda: The CUDA version torch was built with; ``None`` for a torch of another maker's GPUs, which needs no ``nvcc``.
        nvcc: What :func:`find_nvcc` found.
        version: What :func:`nvcc_version` read.
    """
    if cuda is None:
        return ''
    if nvcc is None:
        found = 'none was found (looked at CUDA_HOME, PATH and /usr/local/cuda)'
    elif not version:
        found = f'{nvcc} does not run'
    elif version.split('.')[0] != cuda.split('.')[0]:
        found = f'{nvcc} is of CUDA {version}'
    elif not any((nvcc.parent.parent / folder / 'cuda_runtime.h').is_file() for folder in _header_folders(nvcc.parent.parent)):
        # A wrapper script beside the system's own programs runs, but the C++ files are then compiled without CUDA's headers.
        found = f'{nvcc} has no headers in {nvcc.parent.parent / "include"}'
    else:
        return ''
    return (
        f"mmcv's GPU ops need the nvcc of torch's CUDA {cuda}, and {found}: install the CUDA toolkit {cuda}, "
        '`export CUDA_HOME=` its folder and run `make setup` again; or do without the GPU: '
        '`export CUDA_VISIBLE_DEVICES=` before all make commands.'
    )


def _header_folders(toolkit: Path) -> list[str]:
    return ['include', *(str(folder.relative_to(toolkit)) for folder in toolkit.glob('targets/*/include'))]


def wheel_folder(machine: dict, environ: Mapping[str, str]) -> Path:
    """Where mmcv's wheel for this torch, Python and GPU is kept.

    Args:
        machine: What :data:`PROBE` prints.
        environ: The environment variables.
    """
    cache = environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(cache) / 'orepa_mm' / 'wheels' / f'torch-{machine["torch"]}-{machine["python"]}-{ops_target(machine, environ)}'


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
        mm: Name of the MM distribution, one of :data:`DISTRIBUTIONS`.
        torch: Requirement strings of torch and torchvision, or an empty list for the tested ones.
    """

    def __init__(self, path: Path, mm: str, torch: list[str]) -> None:
        self.path = path
        self.mm = mm
        self.python = path / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        self.stamps = path / 'setup-stamps'
        self.log = path / 'setup.log'
        self.constraints = self._constraints(torch)
        self.torch = torch or [line for line in self.constraints.splitlines() if line.startswith('torch')]

    def _constraints(self, torch: list[str]) -> str:
        lines = (REQUIREMENTS / f'tested-{self.mm}.txt').read_text().splitlines()
        lines = [line for line in lines if line and not line.startswith('#')]
        if torch:
            lines = torch + [line for line in lines if not line.startswith('torch')]
        return '\n'.join(lines) + '\n'

    def create(self) -> None:
        """Make the environment, or go on with the one that is there when it carries our stamps; nothing else is touched."""
        try:
            if not self._claim():
                return
        except OSError as error:
            raise SetupError(f'{self.path} cannot be used ({error}); choose another folder, as in `VENV=.venv make setup`.') from None
        say(f'making the virtual environment {self.path} with Python {sys.version.split()[0]}')
        result = subprocess.run([sys.executable, '-m', 'venv', str(self.path)], capture_output=True, text=True)
        if result.returncode:
            raise SetupError(
                f'`{sys.executable} -m venv` failed; on Debian or Ubuntu install python3-venv.\n{result.stdout}{result.stderr}'
            )
        (self.stamps / 'venv').touch()

    def _claim(self) -> bool:
        """Whether the environment is still to be made, in a folder that is then ours and holds no half of one."""
        if self.path.exists() and not self.path.is_dir():
            raise SetupError(f'VENV={self.path} is a file; choose a folder that does not exist, as in `VENV=.venv make setup`.')
        if self.path.is_dir() and not self.stamps.is_dir() and any(self.path.iterdir()):
            raise SetupError(
                f'VENV={self.path} holds files that `make setup` did not put there, and nothing was changed; choose a folder that '
                'does not exist, as in `VENV=.venv make setup`, or delete this one if you need nothing in it.'
            )
        message = f'{self.python} is missing or leads nowhere'
        if self.python.exists():
            # A half-made environment may run the interpreter it links to, whose packages are somebody else's.
            message = self.runs(f'import os, sys, pip; assert os.path.samefile(sys.prefix, {str(self.path)!r})')
        filled = (self.stamps / 'build-tools').exists()
        if not message and (filled or (self.stamps / 'venv').exists()):
            return False
        if filled:
            # Gigabytes have been installed here, and the fault may be the machine's: an interpreter that is not mounted, no memory.
            raise SetupError(
                f'the Python of {self.path} does not run any more ({message}); put the Python it was made with back, '
                'or delete the folder and run `make setup` again.'
            )
        self.stamps.mkdir(parents=True, exist_ok=True)  # first, so that whatever is interrupted later is known to be ours
        for part in [*self.stamps.iterdir(), *map(self.path.joinpath, PARTS)]:
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
        return True

    def pip(self, *args: str, title: str, command: str = 'install', progress: str | None = None) -> None:
        """Run pip; show its download lines, or the ``[n/m]`` lines of a compiled build where ``progress`` names it."""
        constraints = self.path / 'setup-constraints.txt'
        constraints.write_text(self.constraints)
        line = [
            str(self.python),
            '-m',
            'pip',
            '--disable-pip-version-check',
            command,
            '--prefer-binary',
            '-c',
            str(constraints),
            *args,
        ]
        env = dict(os.environ, PIP_NO_INPUT='1')
        if progress:
            # Debug information doubles the work of the compiler and nobody reads it.
            env.update(
                MMCV_WITH_OPS='1',
                MAX_JOBS=os.environ.get('MAX_JOBS', str(os.cpu_count() or 2)),
                CFLAGS=f'{os.environ.get("CFLAGS", "")} -g0'.strip(),
                PYTHONUNBUFFERED='1',
            )
        say(title)
        start, shown = time.monotonic(), 0.0
        with self.log.open('a') as log:
            log.write(f'$ {" ".join(line)}\n')
            process = subprocess.Popen(
                line,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                env=env,
                cwd=ROOT,
            )
            for line in process.stdout:
                log.write(line)
                now = time.monotonic() - start
                built = re.match(r'\s*\[(\d+)/(\d+)\]', line)
                if progress and built and now - shown > 10:
                    done, total = map(int, built.groups())
                    left = minutes(now / done * (total - done))
                    say(f'  {progress}: {done} of {total} files compiled, {minutes(now)} gone, about {left} to go')
                    shown = now
                elif not progress and re.match(r'\s*(Downloading|Using cached|Building wheel for|Installing collected)', line):
                    say('  ' + line.strip()[:150])
            if process.wait():
                log.flush()
                tail = ''.join(self.log.read_text(errors='replace').splitlines(keepends=True)[-25:])
                raise SetupError(
                    f'pip failed at the step "{title}". The end of {self.log}:\n{tail}\n'
                    'Mend what it names (network, disk space, compiler) and run `make setup` again: finished steps are kept.'
                )

    def step(self, name: str, key: str, action) -> None:
        """Run ``action`` unless the stamp of step ``name`` holds ``key`` already."""
        if self.done(name, key):
            return
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
        """Install mmcv from the wheel that was built with this torch, building it first when there is none."""
        for stamp in [*self.stamps.glob('mmcv*'), *self.stamps.glob('check*')]:
            stamp.unlink()
        package = MMCV_PACKAGE[self.mm]
        version = re.search(rf'^{package}=+(\S+)$', self.constraints, re.MULTILINE).group(1)
        folder = wheel_folder(machine, os.environ)
        wheel = next(folder.glob(f'{package.replace("-", "_")}-{version}-*.whl'), None) or self._build_mmcv(requirement, folder, machine)
        # Another torch's build of the same version may be installed, which pip takes for the same thing.
        self.pip('--force-reinstall', '--no-deps', str(wheel), title=f'installing mmcv from {wheel.parent}')

    def _build_mmcv(self, requirement: str, folder: Path, machine: dict) -> Path:
        if ops_target(machine, os.environ) != 'cpu':
            nvcc = find_nvcc(os.environ)
            problem = nvcc_problem(machine['cuda'], nvcc, nvcc_version(nvcc) if nvcc else '')
            if problem:
                raise SetupError(problem)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:  # no home folder, or one that cannot be written to
            folder = self.path / 'wheels'
            folder.mkdir(exist_ok=True)
        # pip's cache does not say with which torch a wheel was built.
        options = ('--no-build-isolation', '--no-deps', '--no-cache-dir', '--no-binary', MMCV_PACKAGE[self.mm])
        with tempfile.TemporaryDirectory(prefix='building-', dir=folder) as building, tempfile.TemporaryDirectory() as source:
            if tuple(map(int, machine['torch'].split('.')[:2])) >= FIRST_TORCH_WITH_CXX20:
                self.pip(*options, '--dest', source, requirement, command='download', title="downloading mmcv's source")
                shutil.unpack_archive(next(Path(source).glob('*.tar.gz')), source)
                script = next(Path(source).glob('*/setup.py'))
                script.write_text(script.read_text().replace("'-std=c++17'", ''))  # torch's extension builder then adds its own
                requirement = str(script.parent)
            self.pip(
                '-v',
                *options,
                '--wheel-dir',
                building,
                requirement,
                command='wheel',
                progress='mmcv',
                title="building mmcv's compiled ops: 5 to 20 minutes on 2 cores, once for each version of torch",
            )
            wheel = next(Path(building).glob('*.whl'))
            return wheel.replace(folder / wheel.name)  # whole or not at all, also when two environments are made at once

    def check(self, checks: tuple, title: str, machine: dict) -> None:
        say(title)
        failed = []
        for statement, remedy in checks:
            message = self.runs(statement)
            say(f'  {"ok    " if not message else "FAILED"} {statement}')
            if message:
                remedy = remedy.format(wheels=wheel_folder(machine, os.environ), stamps=self.stamps)
                failed.append(f'`{statement}`: {message}\n    what to do: {remedy}')
        if failed:
            raise SetupError('these checks fail:\n  ' + '\n  '.join(failed))

    def installed(self) -> str:
        """The names and versions of all installed distributions, as one string."""
        site = list(self.path.glob('lib/python*/site-packages')) + [self.path / 'Lib' / 'site-packages']
        return '\n'.join(sorted(p.name for folder in site for p in folder.glob('*.dist-info')))


def require_machine() -> None:
    """Refuse early what would fail late."""
    if sys.version_info < (3, 10):
        raise SetupError(
            f'Python >= 3.10 is needed and {sys.executable} is {sys.version.split()[0]}; choose one with `PYTHON=python3.12 make setup`.'
        )
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if not any(map(shutil.which, (compiler, 'g++', 'clang++'))):
        raise SetupError('no C++ compiler found, which mmcv needs to build its ops: install one (Debian: apt-get install g++) or set CXX.')


def main() -> None:
    mm = os.environ.get('MM') or 'onedl'
    if mm not in DISTRIBUTIONS:
        raise SetupError(f'MM={mm} is unknown; choose from {", ".join(DISTRIBUTIONS)}.')
    require_machine()
    env = Environment(Path(os.environ.get('VENV') or ROOT / '.venv').resolve(), mm, (os.environ.get('TORCH') or '').split())
    env.create()
    if (env.stamps / 'distribution').exists() and not env.done('distribution', mm):
        raise SetupError(
            f'{env.path} holds another MM distribution than {mm}; both provide the same modules. '
            f'Choose another folder with `VENV=.venv-{mm} MM={mm} make setup`.'
        )
    env.step('distribution', mm, lambda: None)

    packages = (REQUIREMENTS / f'{mm}.txt').read_text()
    mmcv = next(line for line in packages.splitlines() if line.startswith(MMCV_PACKAGE[mm]))
    others = [line for line in packages.splitlines() if line and line != mmcv]
    key = env.constraints + packages

    env.step(
        'build-tools',
        key,
        # An older setuptools, such as comes with Python 3.11, cannot read onedl-mmcv's pyproject.toml, and pip would keep it.
        lambda: env.pip('pip', 'setuptools>=80', 'wheel', 'packaging', 'ninja', 'psutil', title='installing the build tools'),
    )
    env.step(
        'torch',
        key,
        lambda: env.pip(*env.torch, title='installing torch and torchvision (the CUDA build: several GB, a few minutes)'),
    )
    machine = env.probe()
    env.step_mmcv(mmcv, key, machine)
    env.step(
        'toolboxes',
        key,
        lambda: env.pip('--no-build-isolation', mmcv, *others, title='installing mmengine, mmdet, mmsegmentation and mmpretrain'),
    )
    if env.runs('import cv2'):
        # Without libGL (servers, containers) only the headless build of OpenCV can be imported; it provides the same module.
        env.pip(
            '--force-reinstall',
            '--no-deps',
            'opencv-python-headless',
            title='no libGL here: installing the headless OpenCV',
        )
    env.step(
        'package',
        key + ''.join(path.read_text() for path in (ROOT / 'setup.py', *(REQUIREMENTS / f'{name}.txt' for name in EXTRAS))),
        lambda: env.pip('--no-build-isolation', '-e', f'.[{",".join(EXTRAS)}]', title='installing orepa_mm'),
    )
    env.step('check', env.installed(), lambda: env.check(CHECKS, 'checking that everything imports', machine))
    if machine['gpus']:
        env.step(
            'check-gpu',
            env.installed() + ops_target(machine, os.environ),
            lambda: env.check(GPU_CHECKS, "checking that mmcv's ops run on the GPU", machine),
        )
    say(f'ready: {env.path} (activate with `source {env.path}/bin/activate`)')


if __name__ == '__main__':
    try:
        main()
    except (SetupError, OSError) as error:
        sys.exit(f'[setup] error: {error}')
    except KeyboardInterrupt:
        sys.exit('\n[setup] interrupted; run `make setup` again to go on.')
