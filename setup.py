from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


version = {}
exec((ROOT / 'orepa_mm' / 'version.py').read_text(), version)

setup(
    name='orepa_mm',
    version=version['__version__'],
    description='Online convolutional re-parameterization (OREPA) for mmdetection, mmsegmentation and mmpretrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['orepa_mm', 'orepa_mm.*']),
    python_requires='>=3.10',
    # The MM packages exist in two distributions with the same import names, so neither is a hard requirement: see the extras.
    # torch 2.6 is the first whose safe_globals() takes (function, name) pairs, with which checkpoints are read.
    # jsonschema-rs is for the tools, which check annotation files.
    install_requires=['torch>=2.6', 'numpy', 'jsonschema-rs>=0.30'],
    extras_require={name: requirements(name) for name in ('onedl', 'openmmlab', 'deploy', 'test')},
    classifiers=[
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
