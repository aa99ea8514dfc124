"""Good inputs to spoil, and what a case is."""

import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = dict(
    imagenet='imagenet/orepa-resnet18-w16_imagenet-mini.py',
    coco='coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py',
    cityscapes='cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py',
)
TEXT = """
_base_ = '{base}'
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='{root}', indices=2))
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='{root}'))
test_dataloader = val_dataloader
train_cfg = dict({length}=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
"""
EVALUATORS = "val_evaluator = dict(ann_file='{root}/annotations/instances_val2017.json')\ntest_evaluator = val_evaluator\n"


class Kit:
    """Small datasets, a config on each, a checkpoint and an ONNX file of a classifier; the latter two are made when they are asked for.

    Args:
        folder: Where they go.
        child: Runs a function in a process of its own and returns the exit status first.
    """

    def __init__(self, folder: Path, child: Callable[[Callable[[], None]], tuple]) -> None:
        self.folder, self._child = folder, child
        self.config = folder / 'imagenet.py'
        folder.mkdir(parents=True)
        self._make(self._draw)

    def data(self, name: str) -> Path:
        return self.folder / f'{name}-mini'

    @cached_property
    def checkpoint(self) -> Path:
        path = self.folder / 'trained' / 'last.pth'
        self._make(lambda: _run('tools/train.py', self.config, '--work-dir', path.parent, '--no-validate'))
        return path

    @cached_property
    def onnx(self) -> Path:
        path, checkpoint = self.folder / 'classifier.onnx', self.checkpoint
        self._make(lambda: _run('tools/deploy/export_onnx.py', self.config, checkpoint, path, '--size', '32', '32'))
        return path

    def _make(self, work: Callable[[], None]) -> None:
        status, *_ = self._child(work)
        if status:
            raise RuntimeError((self.folder / 'stderr').read_text()[-1000:])

    def _draw(self) -> None:
        import make_mini_data

        for name, (train, val, size) in dict(imagenet=(10, 5, 64), coco=(4, 2, 96), cityscapes=(4, 2, 128)).items():
            root = self.data(name)
            make_mini_data.make(name, root, train, val, size)
            length = 'max_iters' if name == 'cityscapes' else 'max_epochs'
            text = TEXT.format(base=ROOT / 'configs' / CONFIGS[name], root=root, length=length)
            text += EVALUATORS.format(root=root) if name == 'coco' else ''
            text += 'model = dict(backbone=dict(init_cfg=None))\n' if name != 'imagenet' else ''
            (self.folder / f'{name}.py').write_text(text)


def _run(tool: str, *arguments: Any) -> None:
    sys.argv = [tool, *map(str, arguments)]
    runpy.run_path(str(ROOT / tool), run_name='__main__')


Prepare = Callable[[Kit, Path], Any]
Make = Callable[[Kit, Path], list]


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: What is wrong.
        make: Writes what is to be read into the folder that is given, where the run takes place, and returns the command line.
        words: What the last line has to say.
        status: Of the exit.
        file_size: Bytes, above which no file can be written, as on a full disk.
    """

    name: str
    make: Make
    words: tuple[str, ...] = ()
    status: int = 2
    file_size: int | None = None


def command(*words: str, prepare: Prepare | None = None) -> Make:
    """A command line, ``{kit.…}`` and ``{folder}`` in it filled in, after ``prepare``."""

    def make(kit: Kit, folder: Path) -> list:
        if prepare is not None:
            prepare(kit, folder)
        return [word.format(kit=kit, folder=folder) for word in words]

    return make


def config(text: str, *options: str, scope: str = 'imagenet', tool: str = 'tools/train.py', prepare: Prepare | None = None) -> Make:
    """A command on ``config.py``, which has ``text`` over a good config; filled in as those of :func:`command`."""

    def make(kit: Kit, folder: Path) -> list:
        (folder / 'config.py').write_text(f"_base_ = '{kit.folder}/{scope}.py'\n{text.format(kit=kit, folder=folder)}\n")
        return command(tool, 'config.py', *options, prepare=prepare)(kit, folder)

    return make


def train(text: str, *options: str, **settings: Any) -> Make:
    return config(text, '--work-dir', 'run', *options, **settings)


def test(text: str, *options: str, **settings: Any) -> Make:
    return config(text, '{kit.checkpoint}', '--work-dir', 'run', *options, tool='tools/test.py', **settings)


def beside(name: str, content: bytes) -> Prepare:
    return lambda kit, folder: (folder / name).write_bytes(content)
