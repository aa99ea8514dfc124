"""Packaging. What ``mim`` and ``_base_ = 'orepa_mm::...'`` look for goes into ``orepa_mm/.mim``: configs, tools and the model index."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MIM = ('configs', 'tools', 'model-index.yml')


class BuildWithMIM(build_py):
    """Puts :data:`MIM` into the package: copies in a wheel, links in an editable installation."""

    def run(self) -> None:
        super().run()
        folder = ROOT / 'orepa_mm' / '.mim' if self.editable_mode else Path(self.build_lib, 'orepa_mm', '.mim')
        folder.mkdir(parents=True, exist_ok=True)
        for name in MIM:
            source, target = ROOT / name, folder / name
            if self.editable_mode:
                if not target.is_symlink():
                    target.symlink_to(Path('..', '..', name), target_is_directory=source.is_dir())
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'), dirs_exist_ok=True)
            else:
                shutil.copy(source, target)


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def readme() -> str:
    """The page of the package index; its links lead to :data:`REPOSITORY`."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    if REPOSITORY:
        for start, view in ((r'!\[[^]]*\]', 'raw'), (r'\]', 'blob')):
            text = re.sub(rf'({start})\((?!https?:)', rf'\1({REPOSITORY}/{view}/v{version["__version__"]}/', text)
    return text


REPOSITORY = os.environ.get('REPOSITORY')  # its address, which the workflow that publishes knows
version = {}
exec((ROOT / 'orepa_mm' / 'version.py').read_text(), version)

setup(
    name='orepa_mm',
    version=version['__version__'],
    description='Online convolutional re-parameterization (OREPA) for mmdetection, mmsegmentation and mmpretrain',
    long_description=readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author='The orepa_mm authors',
    project_urls={'Paper': 'https://arxiv.org/abs/2204.00826'}
    | ({'Source': REPOSITORY, 'Changelog': f'{REPOSITORY}/blob/main/CHANGELOG.md'} if REPOSITORY else {}),
    packages=find_packages(include=['orepa_mm', 'orepa_mm.*']),
    package_data=dict(orepa_mm=['py.typed']),
    cmdclass=dict(build_py=BuildWithMIM),
    python_requires='>=3.10',
    # The MM packages exist in two distributions with the same import names, so neither is a hard requirement: see the extras.
    install_requires=['torch>=2.1', 'numpy'],
    extras_require={name: requirements(name) for name in ('onedl', 'openmmlab', 'deploy', 'docs', 'test')},
    keywords='structural re-parameterization, object detection, semantic segmentation, OpenMMLab, PyTorch',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
)
