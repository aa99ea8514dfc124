#!/usr/bin/env python3
"""Make a virtual environment with torch, the MM toolboxes and orepa_mm in it.

Run by ``make setup``; needs Python >= 3.10, a C++ compiler and the standard library only. Every step leaves a stamp in the
environment, so a second call takes seconds and an interrupted one goes on at the step it had reached.

Environment variables:
    VENV      where the environment goes (default: ``.venv`` in the checkout).
    MM        ``onedl`` (default) or ``openmmlab``: the distribution of mmengine, mmcv, mmdet, mmseg and mmpretrain.
    TORCH     what to install instead of the tested torch, e.g. ``TORCH="torch==2.12.1 torchvision==0.27.1"``.
    MAX_JOBS  how many compilers mmcv's build runs at once (default: the number of cores).
"""

from __future__ import annotations  # an old Python must get as far as the message that it is too old

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
DISTRIBUTIONS = ('onedl', 'openmmlab')
MMCV_PACKAGE = dict(onedl='onedl-mmcv', openmmlab='mmcv')

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
        'mmcv was built without its compiled ops: check that a C++ compiler runs, then '
        '`{pip} uninstall -y {mmcv} && {pip} cache remove "*mmcv*"` and run `make setup` again',
    ),
    ('import mmdet.apis', 'run `make setup` again'),
    ('import mmseg.apis', 'run `make setup` again'),
    ('import mmpretrain.apis', 'run `make setup` again'),
    ('import orepa_mm', 'run `make setup` again'),
)


class SetupError(RuntimeError):
    """A step failed; the message says which and what to do."""


def say(message: str) -> None:
    print(f'[setup] {message}', flush=True)


def minutes(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


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
        if self.python.exists():
            return
        say(f'making the virtual environment {self.path} with Python {sys.version.split()[0]}')
        result = subprocess.run([sys.executable, '-m', 'venv', '--clear', str(self.path)], capture_output=True, text=True)
        if result.returncode:
            raise SetupError(
                f'`{sys.executable} -m venv` failed; on Debian or Ubuntu install python3-venv.\n{result.stdout}{result.stderr}'
            )

    def pip(self, *args: str, title: str, progress: str | None = None) -> None:
        """Run pip; show its download lines, or the ``[n/m]`` lines of a compiled build where ``progress`` names it."""
        constraints = self.path / 'setup-constraints.txt'
        constraints.write_text(self.constraints)
        command = [
            str(self.python),
            '-m',
            'pip',
            '--disable-pip-version-check',
            'install',
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
            log.write(f'$ {" ".join(command)}\n')
            process = subprocess.Popen(
                command,
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
                tail = ''.join(self.log.read_text(errors='replace').splitlines(keepends=True)[-25:])
                raise SetupError(
                    f'pip failed at the step "{title}". The end of {self.log}:\n{tail}\n'
                    'Mend what it names (network, disk space, compiler) and run `make setup` again: finished steps are kept.'
                )

    def step(self, name: str, key: str, action) -> None:
        """Run ``action`` unless the stamp of step ``name`` holds ``key`` already."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        stamp = self.stamps / name
        if stamp.exists() and stamp.read_text() == digest:
            return
        action()
        self.stamps.mkdir(exist_ok=True)
        partial = stamp.with_suffix('.tmp')
        partial.write_text(digest)
        partial.replace(stamp)

    def runs(self, statement: str) -> str:
        """Return '' when ``statement`` runs in the environment, else the last line of what it printed."""
        result = subprocess.run([str(self.python), '-W', 'ignore', '-c', statement], capture_output=True, text=True, cwd=self.path)
        return '' if result.returncode == 0 else (result.stderr.strip().splitlines() or ['no message'])[-1]

    def check(self) -> None:
        say('checking that everything imports')
        failed = []
        for statement, remedy in CHECKS:
            message = self.runs(statement)
            say(f'  {"ok    " if not message else "FAILED"} {statement}')
            if message:
                remedy = remedy.format(pip=f'{self.python} -m pip', mmcv=MMCV_PACKAGE[self.mm])
                failed.append(f'`{statement}`: {message}\n    what to do: {remedy}')
        if failed:
            raise SetupError('these imports fail:\n  ' + '\n  '.join(failed))

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
    chosen = env.stamps / 'distribution'
    if chosen.exists() and chosen.read_text() != hashlib.sha256(mm.encode()).hexdigest():
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
        lambda: env.pip('pip', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil', title='installing the build tools'),
    )
    env.step(
        'torch',
        key,
        lambda: env.pip(*env.torch, title='installing torch and torchvision (the CUDA build: several GB, a few minutes)'),
    )
    env.step(
        'mmcv',
        key,
        lambda: env.pip(
            '-v',
            '--no-build-isolation',
            '--no-deps',
            mmcv,
            progress='mmcv',
            title="building mmcv's compiled ops: 5 to 20 minutes on 2 cores the first time, seconds when pip has the wheel in its cache",
        ),
    )
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
        key + (ROOT / 'setup.py').read_text() + (REQUIREMENTS / 'test.txt').read_text(),
        lambda: env.pip('--no-build-isolation', '-e', '.[test]', title='installing orepa_mm'),
    )
    env.step('check', env.installed(), env.check)
    say(f'ready: {env.path} (activate with `source {env.path}/bin/activate`)')


if __name__ == '__main__':
    try:
        main()
    except SetupError as error:
        sys.exit(f'[setup] error: {error}')
    except KeyboardInterrupt:
        sys.exit('\n[setup] interrupted; run `make setup` again to go on.')
