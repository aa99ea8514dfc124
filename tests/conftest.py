import errno
import gc
import importlib
import json
import logging
import os
import pickle
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

# Small tensors on many test processes: threads that wait for each other cost more than they give.
os.environ.setdefault('OMP_NUM_THREADS', '1' if 'PYTEST_XDIST_WORKER' in os.environ else '2')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # threads that spin for each other stall where anything else is running

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

MM = find_spec('mmengine') is not None  # the tests of layers, `expand` and `attach_branches` run without
if MM:
    from yapf.yapflib import yapf_api  # here: its first import writes a cache, which the test processes would read half-written

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ('tests', 'tools', 'tools/analysis_tools', 'tools/deploy', 'demo', '.dev_scripts', '.dev_scripts/studies')
sys.path[:0] = [str(ROOT / room) for room in ROOMS]

# The same cases in every run. `make test-all` asks for the thorough ones: pytest --hypothesis-profile=thorough
unhurried = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
settings.register_profile('quick', max_examples=100, **unhurried)
settings.register_profile('thorough', max_examples=1500, **unhurried)
settings.register_profile('mutants', max_examples=60, phases=[Phase.generate], **unhurried)  # a failure is all it takes
settings.load_profile('quick')


def needs_torch(version: str, what: str) -> None:
    """Skips a test of what older versions of torch have not."""
    if torch.__version__ < version:
        pytest.skip(f'torch {version} is the first with {what}')


def fused(kind: type, parameters: Iterable, **options) -> torch.optim.Optimizer:
    needs_torch('2.4', 'fused optimizers on a CPU')
    return kind(parameters, fused=True, **options)


def loss_scaler(**options) -> 'torch.amp.GradScaler':
    needs_torch('2.3', 'a loss scaler on a CPU')
    return torch.amp.GradScaler('cpu', **options)


def few(names: Iterable[str], *fast: str) -> list:
    """Parameters of a test that is much the same for all ``names``: `make test` runs the ``fast`` ones, `make test-all` every one."""
    names = list(names)
    assert set(fast) <= set(names), f'{set(fast) - set(names)} are not among the names'
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def seed(request):
    if any(value is torch.float16 for value in getattr(getattr(request.node, 'callspec', None), 'params', {}).values()):
        needs_torch('2.3', 'half precision on a CPU')
    torch.manual_seed(0)
    logging.disable(logging.NOTSET)  # scripts that run in this process silence it
    forget_earlier_runs()


@pytest.fixture(scope='session')
def exporter():
    """For tests that export, which not all supported versions of torch can."""
    from mmengine.utils import digit_version

    from orepa_mm.deploy.formats import LOWEST_TORCH

    if digit_version(torch.__version__) < digit_version(LOWEST_TORCH):
        pytest.skip(f'torch {torch.__version__} cannot export')


@pytest.fixture(scope='session', autouse=True)
def unformatted_configs():
    """To lay out the text of a run's config takes longer than a small run's steps."""
    if not MM:
        yield
        return
    format_code = yapf_api.FormatCode
    yapf_api.FormatCode = lambda text, **options: (text, False)
    yield
    yapf_api.FormatCode = format_code


@pytest.fixture(scope='session', autouse=True)
def parse_metafiles_once():
    """Each config that names a toolbox's makes mmengine parse all metafiles of that toolbox."""
    if not MM:
        yield
        return
    from mmengine.fileio import YamlHandler, register_handler

    parsed = {}

    class Remembers(YamlHandler):
        def load_from_fileobj(self, file, **options):
            text = file.read()
            if text not in parsed:
                parsed[text] = pickle.dumps(super().load_from_fileobj(text, **options))
            return pickle.loads(parsed[text])

    register_handler(['yaml', 'yml'])(Remembers)
    yield
    register_handler(['yaml', 'yml'])(YamlHandler)


@pytest.fixture(scope='session')
def toolboxes() -> None:
    """Imported, and left out of the garbage collections that each dataset asks for."""
    for name in ('mmdet', 'mmpretrain', 'mmseg'):
        importlib.import_module(f'{name}.apis')

    gc.collect()
    gc.freeze()


def forget_earlier_runs() -> None:
    """Drop mmengine's global loggers, visualizers and scopes, as a new process would."""
    if not MM:
        return
    from mmengine.utils import ManagerMixin

    classes = [ManagerMixin]
    for cls in classes:
        classes += cls.__subclasses__()
        if hasattr(cls, '_instance_dict'):
            cls._instance_dict.clear()


@pytest.fixture(scope='session')
def mini_data(tmp_path_factory) -> Path:
    """Small drawn datasets in the layouts of ImageNet, COCO and Cityscapes."""
    import make_mini_data

    root = tmp_path_factory.mktemp('data')
    for name, (train, val, size) in dict(imagenet=(20, 10, 64), coco=(8, 4, 96), cityscapes=(6, 3, 128)).items():
        make_mini_data.make(name, root / f'{name}-mini', train, val, size)
    return root


def python(*args, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Ended: a Python of its own that finds this package."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1') | variables
    return subprocess.run([sys.executable, '-W', 'ignore', *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)


def run_without(packages: str, script: Path, *args, **options) -> str:
    """What a script prints where the packages, named with commas between them, do not exist."""
    result = python(ROOT / 'tests' / 'alone.py', packages, script, *args, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


class Payload:
    """What calls a function as it is unpickled."""

    def __init__(self, function: Callable, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def free_port() -> str:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def done(result: tuple[int, str]) -> str:
    """What a tool that ended well wrote to standard error."""
    status, error = result
    assert status == 0, error
    return error


def refused(result: tuple[int, str], *parts: str) -> None:
    """A tool ended with status 2 and one line of error that has all the parts."""
    status, error = result
    lines = [line for line in error.splitlines() if line.startswith('error: ')]
    assert status == 2 and len(lines) == 1 and 'Traceback' not in error, error
    assert all(part in lines[0] for part in parts), lines[0]


def full_disk(*args, **options) -> None:
    raise OSError(errno.ENOSPC, 'No space left on device')


def fill_disk(folder: Path, monkeypatch) -> None:
    """What is written to files of a folder ends in the middle."""
    write_bytes = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        if path.parent == folder:
            write_bytes(path, data[: len(data) // 2])
            full_disk()
        return write_bytes(path, data)

    monkeypatch.setattr(Path, 'write_bytes', write)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Bit for bit."""
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(value, its) for (name, value), (other, its) in pairs)


class Tools:
    """Runs the command-line tools in this process, on small data and short schedules."""

    CONFIGS = dict(
        imagenet='configs/imagenet/orepa-resnet18-w16_imagenet-mini.py',
        coco='configs/coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py',
        cityscapes='configs/cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py',
    )

    def __init__(self, data: Path, monkeypatch, capsys):
        self.data, self.monkeypatch, self.capsys = data, monkeypatch, capsys

    def options(self, name: str, iterations: int = 2) -> dict:
        """Overrides that make the config ``name`` run for seconds, and what its scores are then too low for."""
        root = str(self.data / f'{name}-mini')
        options = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
        for split in ('train', 'val', 'test'):
            options |= {f'{split}_dataloader.num_workers': 0, f'{split}_dataloader.persistent_workers': False}
        options |= {'train_dataloader.batch_size': 2, 'default_hooks.logger.interval': 1, 'randomness.seed': 0}
        if name == 'coco':
            ann_file = f'{root}/annotations/instances_val2017.json'
            options |= {'val_evaluator.ann_file': ann_file, 'test_evaluator.ann_file': ann_file, 'model.test_cfg.rcnn.score_thr': 0.0}
        if name != 'imagenet':
            options['model.backbone.init_cfg'] = None
        if name == 'cityscapes':
            options |= {'train_cfg.max_iters': iterations, 'train_cfg.val_interval': iterations}
            options['default_hooks.checkpoint.interval'] = iterations
        else:
            options |= {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': 1}
            options |= {'train_dataloader.dataset.indices': 2 * iterations}
        return options

    def run(self, tool: str, *args: str, options: dict | None = None) -> tuple[int, str]:
        """Exit status and standard error of ``python TOOL.py ARGS --cfg-options OPTIONS``."""
        pairs = [f'{key}={value if isinstance(value, str) else json.dumps(value)}' for key, value in (options or {}).items()]
        pairs = [pair.replace('=null', '=None').replace('=false', '=False').replace('=true', '=True') for pair in pairs]
        self.monkeypatch.chdir(ROOT)
        self.monkeypatch.setattr(sys, 'argv', [tool, *map(str, args), *(['--cfg-options', *pairs] if pairs else [])])
        self.capsys.readouterr()
        forget_earlier_runs()
        try:
            runpy.run_path(str(ROOT / f'{tool}.py'), run_name='__main__')
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        return status, self.capsys.readouterr().err

    def train(self, name: str, work_dir: Path, *args: str, options: dict | None = None, iterations: int = 2) -> tuple[int, str]:
        base = self.options(name, iterations)
        if any(key.startswith('model.backbone.init_cfg.') for key in options or {}):
            base.pop('model.backbone.init_cfg', None)
        options = base | (options or {})
        return self.run('tools/train', self.CONFIGS[name], '--work-dir', work_dir, *args, options=options)

    def test(self, name: str, checkpoint: Path, work_dir: Path, *args: str, options: dict | None = None) -> tuple[int, str]:
        options = self.options(name) | (options or {})
        return self.run('tools/test', self.CONFIGS[name], checkpoint, '--work-dir', work_dir, *args, options=options)


@pytest.fixture
def tools(toolboxes, mini_data, monkeypatch, capsys) -> Tools:
    return Tools(mini_data, monkeypatch, capsys)


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """The checkpoint of a short training run for each toolbox; made on first use."""
    made = {}

    def get(name: str, tools: Tools) -> Path:
        if name not in made:
            work_dir = tmp_path_factory.mktemp(name)
            done(tools.train(name, work_dir))
            made[name] = work_dir / 'last.pth'
        return made[name]

    return get
