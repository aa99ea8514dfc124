#!/usr/bin/env python3
"""Hand the tools files and options that are broken, hostile or too large, and see how each run ends.

    python .dev_scripts/hostile_inputs.py                  # all cases, a few minutes
    python .dev_scripts/hostile_inputs.py --only coco
    python .dev_scripts/hostile_inputs.py --sample 6       # spread over all

What the user can mend ends in a last line that begins with ``error:`` and names what it should, with status 2 and without a traceback; the
unexpected in a traceback, with status 1. No run leaves a checkpoint or half a file, changes what was there, or runs code from a file.
"""

import argparse
import contextlib
import gc
import json
import os
import pickle
import re
import resource
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ('tools', 'demo')]
import make_mini_data  # noqa: E402
import torch  # noqa: E402
from common import UsageError, run  # noqa: E402

SECONDS = 120  # of the processor, of one run
TRACEBACK = 'Traceback (most recent call last)'
TRAIN, TEST = ('tools/train.py', 'config.py', '--work-dir', 'run'), ('tools/test.py', 'config.py', 'x.pth', '--work-dir', 'run')
CONVERTERS = 'tools/model_converters'
CONFIGS = dict(
    imagenet='imagenet/orepa-resnet18-w16_imagenet-mini.py',
    coco='coco/mask-rcnn_orepa-r18-w16_fpn_coco-mini.py',
    cityscapes='cityscapes/pspnet_orepa-r18-w16-d8_cityscapes-mini.py',
)
BASE = """
_base_ = '{base}'
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='data', indices=2))
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root='data'))
test_dataloader = val_dataloader
train_cfg = dict({length}=1, val_interval=1)
"""
EVALUATORS = "val_evaluator = dict(ann_file='data/annotations/instances_val2017.json')\ntest_evaluator = val_evaluator\n"
HTML = b'<html>'


class Payload:
    """Makes a file called ``ran`` when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path('ran'),)


@dataclass(frozen=True)
class Case:
    """One run, in a folder with ``config.py`` and the small dataset ``data`` of a toolbox.

    Attributes:
        name: What is wrong.
        command: The command line.
        words: What the last line has to say.
        config: Lines for the end of ``config.py``; bytes are the whole of it.
        spoil: Changes the folder first.
        scope: Which dataset.
        status: Of the exit.
        file_size: Bytes, above which no file can be written, as on a full disk.
    """

    name: str
    command: tuple[str, ...]
    words: tuple[str, ...]
    config: str | bytes = ''
    spoil: Callable[[], object] = lambda: None
    scope: str = 'imagenet'
    status: int = 2
    file_size: int | None = None


def write(path: str, content: bytes) -> Callable[[], object]:
    """Puts ``content`` in the place of the first file like ``path``, or there where no file is."""
    return lambda: next(iter(sorted(Path().glob(path))), Path(path)).write_bytes(content)


def saved(content: object) -> Callable[[], object]:
    return lambda: torch.save(content, 'x.pth')


def annotations(change: Callable[[dict], object]) -> Callable[[], object]:
    def spoil() -> None:
        path = Path('data/annotations/instances_train2017.json')
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def there() -> None:
    """A file and a folder that an output has the name of."""
    Path('out').write_text('mine')
    Path('outdir').mkdir()
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), 'x.pth')


PRETRAINED = "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth')))"
PICTURE = 'data/train/circle/*.jpg'
CASES = [
    Case('config that is empty', TRAIN, ('config.py',), config=b'', status=1),
    Case('config with a syntax error', TRAIN, ('config.py', 'never closed'), config=b'model = ('),
    Case('config in another encoding', TRAIN, ('config.py',), config='# caf\xe9'.encode('latin-1')),
    Case('config that is its own base', TRAIN, ('config.py', '_base_'), config=b"_base_ = './config.py'"),
    Case('config with a base that is not there', TRAIN, ('absent.py',), config=b"_base_ = './absent.py'"),
    Case('config that divides by zero', TRAIN, ('ZeroDivisionError',), config=b'a = 1 / 0', status=1),
    Case('config that is not there', ('tools/preflight.py', 'absent.py'), ('absent.py', 'no such config')),
    Case('config with escapes in its name', ('tools/train.py', 'con\nfig\x1b[2J.py'), ('no such config',)),
    Case('setting of a method there is not', TRAIN, ("'orepa'",), "model = dict(backbone=dict(method='orepa'))"),
    Case('setting of a backbone there is not', TRAIN, ('OREPAResNt',), "model = dict(backbone=dict(type='OREPAResNt'))", status=1),
    Case('setting of a word as hooks', TRAIN, ('config.py', 'custom_hooks'), "custom_hooks = 'CheckHook'"),
    Case('setting of a work dir that is a file', TRAIN[:2], ('config.py',), "work_dir = 'config.py'"),
    Case('option into a number', (*TRAIN, '--cfg-options', 'model.backbone.depth.x=1'), ('--cfg-options',)),
    Case('option of an end behind a list', (*TRAIN, '--cfg-options', 'train_pipeline.99.type=x'), ('--cfg-options',)),
    Case('option --amp without a GPU', (*TRAIN, '--amp'), ('--amp',)),
    Case('checkpoint that is not there', TEST, ('x.pth', 'no such checkpoint')),
    Case('checkpoint that is a web page', TEST, ('x.pth', 'web page'), spoil=write('x.pth', HTML)),
    Case('checkpoint that is empty', TEST, ('x.pth', 'cut short or damaged'), spoil=write('x.pth', b'')),
    Case('checkpoint that is a link to itself', TEST, ('x.pth',), spoil=lambda: Path('x.pth').symlink_to('x.pth')),
    Case('checkpoint that runs code', TEST, ('x.pth', 'would run code'), spoil=saved(dict(state_dict={}, x=Payload()))),
    Case('checkpoint that is a pickle', TEST, ('x.pth',), spoil=lambda: Path('x.pth').write_bytes(pickle.dumps(Payload()))),
    Case('checkpoint of load_from', TRAIN, ('would run code',), "load_from = 'x.pth'", spoil=saved(dict(state_dict={}, x=Payload()))),
    Case('checkpoint of init_cfg', TRAIN, ('web page',), PRETRAINED, spoil=write('x.pth', HTML)),
    Case('checkpoint of another model', TEST, ('x.pth', 'does not fit'), spoil=saved(dict(state_dict={'backbone.w': torch.ones(1)}))),
    Case('checkpoint to resume from holds weights only', (*TRAIN, '--resume', 'x.pth'), ('x.pth',), spoil=saved({'w': torch.ones(1)})),
    Case('address that refuses', TRAIN, ('127.0.0.1:9', 'refused'), "load_from = 'http://127.0.0.1:9/x.pth'"),
    Case('coco that is cut short', TRAIN, ('not JSON',), spoil=write('data/annotations/*train*', b'{"images": ['), scope='coco'),
    Case('coco with a box of three', TRAIN, ('[0].bbox',), spoil=annotations(lambda c: c['annotations'][0]['bbox'].pop()), scope='coco'),
    Case(
        'coco with equal names', TRAIN, ('names',), spoil=annotations(lambda c: [e.update(name='a') for e in c['categories']]), scope='coco'
    ),
    Case('coco without images', TRAIN, ('images',), spoil=annotations(lambda c: c.pop('images')), scope='coco'),
    Case('image that is text', TRAIN, ('.jpg', 'cannot be read'), spoil=write(PICTURE, b'hello')),
    Case(
        'label map that is text', TRAIN, ('cannot be read',), spoil=write('data/gtFine/train/mini/*Ids.png', b'hello'), scope='cityscapes'
    ),
    Case('data that is not there', TRAIN, ('absent', 'data_root'), "train_dataloader = dict(dataset=dict(data_root='absent'))"),
    Case('output in a folder', (f'{CONVERTERS}/reparameterize_model.py', 'config.py', 'x.pth', 'outdir'), ('--force',), spoil=there),
    Case('output that is there', (f'{CONVERTERS}/convert_checkpoint.py', 'x.pth', 'out', '--reverse'), ('--force',), spoil=there),
    Case('output below a file', (f'{CONVERTERS}/publish_model.py', 'x.pth', 'out/x.pth'), ('out/x.pth',), spoil=there),
    Case('metrics in a folder', (*TEST, '--metrics', 'outdir'), ('outdir',), spoil=there),
    Case('full disk', TRAIN, ('File too large',), file_size=300_000),
    Case('onnx that is text', ('tools/deploy/run_onnx.py', 'x.onnx', 'a.jpg'), ('x.onnx',), spoil=write('x.onnx', b'hello')),
    Case('benchmark on a GPU that is not there', ('tools/benchmark.py', '--device', 'cuda:77', '--out', 'out'), ('--device',)),
    Case('drawing what there is not', ('demo/make_mini_data.py', 'kitti', '--out', 'out'), ('kitti',)),
    Case('demo without annotations', ('demo/demo.py', '--data', 'data'), ('instances_train2017.json',)),
]


def in_child(work: Callable[[], object], folder: Path, file_size: int | None) -> int:
    """Exit status of ``work`` in a forked process, its output in ``folder``. It has imported all that this one has."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        for descriptor, name in ((1, 'stdout'), (2, 'stderr')):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def contents(folder: Path) -> dict[str, bytes]:
    """What a run may not change: the files that lie there before, but for what it prints."""
    return {str(path): path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name not in ('stdout', 'stderr')}


def faults_of(case: Case, data: Path, folder: Path) -> list[str]:
    """What is wrong with how a case ends."""
    shutil.copytree(data / case.scope, folder / 'data')
    text = BASE.format(base=ROOT / 'configs' / CONFIGS[case.scope], length='max_iters' if case.scope == 'cityscapes' else 'max_epochs')
    text += (EVALUATORS if case.scope == 'coco' else '') + (
        '' if case.scope == 'imagenet' else 'model = dict(backbone=dict(init_cfg=None))\n'
    )
    (folder / 'config.py').write_bytes(case.config if isinstance(case.config, bytes) else f'{text}{case.config}\n'.encode())
    os.chdir(folder)
    case.spoil()
    before = contents(folder)

    def work() -> None:
        sys.argv = [*case.command]
        runpy.run_path(str(ROOT / case.command[0]), run_name='__main__')

    status = in_child(work, folder, case.file_size)
    error = (folder / 'stderr').read_text(errors='replace')
    last = ([line for line in error.splitlines() if line.strip()] or [''])[-1]
    after = contents(folder)
    found = {
        f'status {status} for {case.status}': status != case.status,
        'traceback on the terminal': (TRACEBACK in error) != (case.status == 1),
        'no last line': case.status == 2 and not re.match(r'(\S+: )?error: \S', last),
        f'{case.words} not in {last[:200]!r}': not all(word in last for word in case.words) and case.status == 2,
        'left a file': any(name.endswith(('.partial', '.pth', '.onnx')) for name in after.keys() - before.keys()),
        'changed a file': any(after.get(name) != content for name, content in before.items()),
        'ran code': (folder / 'ran').exists(),
    }
    return [fault for fault, wrong in found.items() if wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', default=[], metavar='WORD', help='cases with one of these words in their names')
    parser.add_argument('--sample', type=int, help='so many cases, spread over all')
    args = parser.parse_args()
    cases = [case for case in CASES if not args.only or any(word in case.name for word in args.only)]
    if not cases:
        raise UsageError(f'--only {" ".join(args.only)}: no case has this in its name.')
    cases = [cases[i * len(cases) // args.sample] for i in range(min(args.sample, len(cases)))] if args.sample else cases
    wrong = 0
    with tempfile.TemporaryDirectory() as top:
        for name, sizes in dict(imagenet=(10, 5, 64), coco=(4, 2, 96), cityscapes=(4, 2, 128)).items():
            make_mini_data.make(name, Path(top, 'data', name), *sizes)
        gc.freeze()  # the children need not go through all that was imported
        for number, case in enumerate(cases):
            folder = Path(top, str(number))
            folder.mkdir()
            faults = faults_of(case, Path(top, 'data'), folder)
            wrong += bool(faults)
            print(f'{case.name}: {"; ".join(faults) or "as it should"}', flush=True)
        os.chdir(ROOT)
    print(f'{len(cases)} cases, {wrong} not as they should')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    run(main)
