"""Places that cannot be written, exported networks that are none, and command lines of the other tools."""

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from .checkpoints import CONVERT, EXPAND, PUBLISH, REPARAMETERIZE
from .datasets import FILE, picture
from .kit import Case, Kit, Prepare, beside, command

TEST = ('tools/test.py', '{kit.config}', '{kit.checkpoint}', '--work-dir', 'run')
EXPORT, RUN, QUANTIZE = 'tools/deploy/export_onnx.py', 'tools/deploy/run_onnx.py', 'tools/deploy/quantize_onnx.py'
BENCHMARK, DRAW = 'tools/benchmark.py', 'demo/make_mini_data.py'
PICTURES = '{kit.folder}/imagenet-mini'
JPG = f'{PICTURES}/train/circle/train_00000.jpg'
LARGE = picture(14000, 14000, '1')  # 196 megapixels, and Pillow takes 179


def there(kit: Kit, folder: Path) -> None:
    """A file and a folder that an output has the name of, or lies in."""
    (folder / 'out').write_text('mine')
    (folder / 'outdir').mkdir()
    (folder / 'outdir' / 'mine.txt').write_text('mine')


OUTPUTS = {
    '--metrics in a folder': ((*TEST, '--metrics', 'outdir'), 'outdir'),
    '--metrics below a file': ((*TEST, '--metrics', 'out/x.json'), 'out/x.json'),
    '--metrics in /proc': ((*TEST, '--metrics', '/proc/x/x.json'), '/proc/x'),
    '--metrics on a device': ((*TEST, '--metrics', '/dev/null'), '/dev/null'),
    '--metrics too long': ((*TEST, '--metrics', 'x' * 300), 'File name too long'),
    '--out below a file': ((*TEST, '--out', 'out/x.pkl'), 'out/x.pkl'),
    '--out of another kind': ((*TEST, '--out', 'x.json'), 'x.json'),
    '--show-dir in a file': ((*TEST, '--show-dir', 'out'), 'out'),
    'of the benchmark in a file': ((BENCHMARK, '--arch', 'resnet18', '--size', '32', '--repeats', '1', '--out', 'out'), 'out'),
    'of the sweep in a file': (('.dev_scripts/studies/sweep_stem_lr.py', '{kit.folder}/coco.py', '--out', 'out'), 'out'),
    'of a conversion below a file': ((CONVERT, '{kit.checkpoint}', 'out/x.pth', '--reverse'), 'out/x.pth'),
    'of a conversion that is there': ((CONVERT, '{kit.checkpoint}', 'out', '--reverse'), '--force'),
    'of an expansion below a file': ((EXPAND, 'none', '{kit.checkpoint}', 'out/x.pth'), 'out/x.pth'),
    'of publishing below a file': ((PUBLISH, '{kit.checkpoint}', 'out/x.pth'), 'out/x.pth'),
    'of re-parameterizing in a file': ((REPARAMETERIZE, '{kit.config}', '{kit.checkpoint}', 'out'), 'out'),
    'of re-parameterizing in a folder': ((REPARAMETERIZE, '{kit.config}', '{kit.checkpoint}', 'outdir'), '--force'),
    'of an export in a folder': ((EXPORT, '{kit.config}', '{kit.checkpoint}', 'outdir', '--force'), 'outdir'),
    'of an export that is there': ((EXPORT, '{kit.config}', '{kit.checkpoint}', 'out'), '--force'),
    'of quantizing below a file': ((QUANTIZE, '{kit.onnx}', PICTURES, 'out/x.onnx'), 'out/x.onnx'),
    'of quantizing over its input': ((QUANTIZE, '{kit.onnx}', PICTURES, '{kit.onnx}', '--force'), 'classifier.onnx'),
    'of running in a file': ((RUN, '{kit.onnx}', JPG, '--out-dir', 'out'), 'out'),
    'of drawing in a file': ((DRAW, 'imagenet', '--out', 'out', '--train', '1', '--val', '1'), 'out'),
    'of the pipeline in a folder': (('demo/pipeline.py', '--out', 'outdir'), 'outdir'),
    'of the pipeline in a file': (('demo/pipeline.py', '--out', 'out'), 'out'),
    'of a page below a file': (('.dev_scripts/list_configs.py', '--write', 'out/x.md'), 'out/x.md'),
}
FULL = {  # with the bytes that there is room for
    'a training': (('tools/train.py', '{kit.config}', '--work-dir', 'run'), 300_000),
    'a conversion': ((CONVERT, '{kit.checkpoint}', 'out.pth', '--reverse'), 300_000),
    'publishing': ((PUBLISH, '{kit.checkpoint}', 'out.pth'), 300_000),
    'an export': ((EXPORT, '{kit.config}', '{kit.checkpoint}', 'out.onnx', '--size', '32', '32', '--pictures', PICTURES), 300_000),
    're-parameterizing': ((REPARAMETERIZE, '{kit.config}', '{kit.checkpoint}', 'out'), 300_000),
    'quantizing': ((QUANTIZE, '{kit.onnx}', PICTURES, 'out.onnx', '--count', '2'), 300_000),
}


def foreign(**facts: str) -> Prepare:
    """Writes ``x.onnx``: the classifier with other metadata, or with none."""

    def write(kit: Kit, folder: Path) -> None:
        model = onnx.load(kit.onnx)
        found = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, found | facts if facts else {})
        onnx.save(model, folder / 'x.onnx')

    return write


def demo_data(content: str | None) -> Prepare:
    def write(kit: Kit, folder: Path) -> None:
        (folder / 'mine' / 'annotations').mkdir(parents=True)
        if content is not None:
            (folder / 'mine' / 'annotations' / FILE).write_text(content)

    return write


TEXT = beside('x.onnx', b'hello')
COMMANDS: dict[str, tuple[tuple[str, ...], str, Callable | None]] = {
    'onnx that is not there': ((RUN, 'absent.onnx', JPG), 'absent.onnx', None),
    'onnx that is text': ((RUN, 'x.onnx', JPG), 'x.onnx', TEXT),
    'onnx without metadata': ((RUN, 'x.onnx', JPG), 'metadata', foreign()),
    'onnx of another task': ((RUN, 'x.onnx', JPG), 'flying', foreign(task='flying')),
    'onnx with steps that are none': ((RUN, 'x.onnx', JPG), 'x.onnx', foreign(prepare='[')),
    'onnx and a picture that is not there': ((RUN, '{kit.onnx}', 'absent.jpg'), 'absent.jpg', None),
    'onnx and a picture that is text': ((RUN, '{kit.onnx}', 'x.onnx'), 'x.onnx', TEXT),
    'onnx and a picture of 196 megapixels': ((RUN, '{kit.onnx}', 'x.png'), 'x.png', beside('x.png', LARGE)),
    'quantizing with a folder that is not there': ((QUANTIZE, '{kit.onnx}', 'absent', 'out.onnx'), 'absent', None),
    'quantizing with an empty folder': ((QUANTIZE, '{kit.onnx}', 'tmp', 'out.onnx'), 'no picture', None),
    'quantizing with 196 megapixels': ((QUANTIZE, '{kit.onnx}', '.', 'out.onnx'), 'x.png', beside('x.png', LARGE)),
    'quantizing no network': ((QUANTIZE, 'x.onnx', PICTURES, 'out.onnx'), 'x.onnx', TEXT),
    'quantizing with no pictures': ((QUANTIZE, '{kit.onnx}', PICTURES, 'out.onnx', '--count', '0'), '--count', None),
    'quantizing to a size of 0': ((QUANTIZE, '{kit.onnx}', PICTURES, 'out.onnx', '--size', '0', '0'), '--size', None),
    'export of a size of 0': ((EXPORT, '{kit.config}', '{kit.checkpoint}', 'out.onnx', '--size', '0', '0'), '--size', None),
    'export of operators there are not': ((EXPORT, '{kit.config}', '{kit.checkpoint}', 'out.onnx', '--opset', '99'), '--opset', None),
    'export with 196 megapixels': (
        (EXPORT, '{kit.config}', '{kit.checkpoint}', 'out.onnx', '--pictures', '.'),
        'x.png',
        beside('x.png', LARGE),
    ),
    'benchmark of no picture': ((BENCHMARK, '--batch', '0', '--out', 'out'), '--batch', None),
    'benchmark of 3 pixels': ((BENCHMARK, '--size', '3', '--out', 'out'), '--size', None),
    'benchmark of no repeat': ((BENCHMARK, '--repeats', '0', '--out', 'out'), '--repeats', None),
    'benchmark on a GPU that is not there': ((BENCHMARK, '--device', 'cuda:77', '--out', 'out'), '--device', None),
    'benchmark on a device there is not': ((BENCHMARK, '--device', 'abacus', '--out', 'out'), '--device', None),
    'benchmark of a network there is not': ((BENCHMARK, '--arch', 'resnet19', '--out', 'out'), '--arch', None),
    'drawing what there is not': ((DRAW, 'kitti', '--out', 'out'), 'kitti', None),
    'drawing one pixel': ((DRAW, 'coco', '--size', '1', '--out', 'out'), '--size', None),
    'drawing with a negative seed': ((DRAW, 'imagenet', '--seed', '-1', '--out', 'out'), '--seed', None),
    'demo without annotations': (('demo/demo.py', '--data', 'mine'), FILE, demo_data(None)),
    'demo with text': (('demo/demo.py', '--data', 'mine'), FILE, demo_data('hello')),
    'demo with a list': (('demo/demo.py', '--data', 'mine'), FILE, demo_data('[1]')),
    'demo without names': (('demo/demo.py', '--data', 'mine'), FILE, demo_data('{"images": [{}], "categories": [{"id": 1}]}')),
    'table for a page that is not there': (('.dev_scripts/doc_tables.py', 'absent.md', 'a', 'absent.md'), 'absent.md', None),
    'table for a page without its place': (('.dev_scripts/count_parameters.py', '--write', 'x.md'), 'parameters', beside('x.md', b'hello')),
}


def cases() -> Iterator[Case]:
    for name, (words, said) in OUTPUTS.items():
        yield Case(f'output {name}', command(*words, prepare=there), (said,))
    for name, (words, size) in FULL.items():
        yield Case(f'full disk of {name}', command(*words), ('File too large',), file_size=size)
    for name, (words, said, prepare) in COMMANDS.items():
        yield Case(name, command(*words, prepare=prepare), (said,))
    steps = foreign(prepare='[{"step": "resize"}]')
    yield Case('onnx with steps there are not', command(RUN, 'x.onnx', JPG, prepare=steps), ('x.onnx', 'traceback in'), status=1)
    terabyte = command(BENCHMARK, '--arch', 'resnet18', '--batch', '2000000', '--out', 'out')
    yield Case('benchmark of a terabyte', terabyte, ('traceback in',), status=1)
