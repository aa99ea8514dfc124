"""Configs and options that are wrong."""

from collections.abc import Iterator
from pathlib import Path

from .kit import Case, Kit, Make, command, config, test, train

FILES = {
    'that is empty': ('', ('config.py',)),
    'with a syntax error': ('model = (', ('config.py', 'never closed')),
    'in another encoding': ('# caf\xe9'.encode('latin-1'), ('config.py', 'UnicodeDecodeError')),
    'with a null byte': (b'a = 1\0', ('config.py',)),
    'that is a picture': (b'\x89PNG\r\n\x1a\n' + bytes(range(256)), ('config.py',)),
    'that is its own base': ("_base_ = './config.py'", ('config.py', '_base_')),
    'that goes round through another': ("_base_ = './other.py'", ('config.py', '_base_')),
    'with a base that is not there': ("_base_ = './absent.py'", ('absent.py',)),
    'with a base of a package that is not there': ("_base_ = 'mmnothing::a.py'", ('config.py',)),
    'with a base that its package lacks': ("_base_ = 'mmdet::nothing/nothing.py'", ('nothing',)),
    'with a number as its base': ('_base_ = 3', ('config.py',)),
    'with two bases that say the same': ("_base_ = ['./first.py', './second.py']", ('config.py', 'Duplicate')),
    'that divides by zero': ('a = 1 / 0', ('config.py', 'ZeroDivisionError')),
    'that imports what is not there': ('import nothing_of_the_kind', ('config.py',)),
    'with custom imports that are not there': (
        "custom_imports = dict(imports=['nothing_of_the_kind'])",
        ('config.py', 'nothing_of_the_kind'),
    ),
    'that asks for a variable that is not set': ("a = '{{ $NOT_SET_ANYWHERE: }}'", ('config.py',)),
    'that nests too deep': ('a = ' + '[' * 5000 + ']' * 5000, ('config.py',)),
    'with a reserved name': ('filename = 3', ('config.py', 'filename')),
}
SETTINGS = {
    'a depth there is not': ('model = dict(backbone=dict(depth=20))', ('config.py', 'model.backbone', '20')),
    'a method there is not': ("model = dict(backbone=dict(method='orepa'))", ('config.py', 'model.backbone', 'orepa')),
    'an argument there is not': ('model = dict(backbone=dict(dpeth=18))', ('config.py', 'model.backbone', 'dpeth')),
    'a backbone there is not': ("model = dict(backbone=dict(type='OREPAResNt'))", ('config.py', 'model.backbone', 'OREPAResNt')),
    'no type': ('model = dict(backbone=dict(_delete_=True, depth=18))', ('config.py', 'type')),
    'a number as the model': ('model = 3', ('config.py',)),
    'no model': ('model = None', ('config.py',)),
    'no training data': ('train_dataloader = None', ('config.py',)),
    'a number as training data': ('train_dataloader = dict(_delete_=True, dataset=3, batch_size=1, num_workers=0)', ('config.py',)),
    'a dataset there is not': ("train_dataloader = dict(dataset=dict(type='CustomDatset'))", ('config.py', 'CustomDatset')),
    'an argument its dataset has not': ('train_dataloader = dict(dataset=dict(metainf=3))', ('metainf',)),
    'a step there is not': ("train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadPicture')]))", ('config.py', 'LoadPicture')),
    'an argument its step has not': (
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile', colour=3)]))",
        ('config.py', 'LoadImageFromFile', 'colour'),
    ),
    'an optimizer there is not': ("optim_wrapper = dict(optimizer=dict(type='SDG'))", ('config.py', 'optim_wrapper.optimizer', 'SDG')),
    'an argument its optimizer has not': ('optim_wrapper = dict(optimizer=dict(betas=3))', ('config.py', 'betas')),
    'a word as learning rate': ("optim_wrapper = dict(optimizer=dict(lr='fast'))", ('config.py',)),
    'a scheduler there is not': ("param_scheduler = [dict(type='CosineLr')]", ('config.py', 'CosineLr')),
    'an argument its loop has not': ('train_cfg = dict(max_epoch=3)', ('config.py', 'max_epoch')),
    'a word as number of epochs': ("train_cfg = dict(max_epochs='ten')", ('config.py',)),
    'a hook there is not': ("custom_hooks = [dict(type='CheckHok')]", ('config.py', 'custom_hooks[0]', 'CheckHok')),
    'an argument its hook has not': (
        "custom_hooks = [dict(type='ReparameterizeHook', tolerence=1)]",
        ('config.py', 'custom_hooks[0]', 'tolerence'),
    ),
    'a word as hooks': ("custom_hooks = 'CheckHook'", ('config.py', 'custom_hooks')),
    'one hook in place of a list': ("custom_hooks = dict(_delete_=True, type='CheckHook')", ('config.py', 'custom_hooks')),
    'a metric there is not': ("val_evaluator = dict(type='Acuracy')", ('config.py', 'val_evaluator', 'Acuracy')),
    'a viewer there is not': ("visualizer = dict(vis_backends=[dict(type='Screen')])", ('config.py', 'Screen')),
    'a negative batch': ('train_dataloader = dict(batch_size=-2)', ('config.py',)),
    'a word as number of workers': ("train_dataloader = dict(num_workers='two')", ('config.py',)),
    'another number of classes': ('model = dict(head=dict(num_classes=7))', ('model.head.num_classes=7', '5 classes')),
    'a word as number of classes': ("model = dict(head=dict(num_classes='five'))", ('config.py', 'model.head')),
    'a word as seed': ("randomness = dict(seed='x')", ('config.py',)),
    'a log level there is not': ("log_level = 'LOUD'", ('config.py', 'LOUD')),
    'a runner there is not': ("runner_type = 'Walker'", ('config.py', 'Walker')),
    'a viewer that saves below a file': ("visualizer = dict(save_dir='{kit.onnx}/x')", ('classifier.onnx',)),
}
OPTIONS = {
    'without a value': ('--cfg-options', 'a'),
    'with brackets that do not close': ('--cfg-options', 'a=[(1,2]'),
    'into a number': ('--cfg-options', 'model.backbone.depth.x=1'),
    'behind the end of a list': ('--cfg-options', 'train_pipeline.99.type=x'),
}
NO_TEST = 'test_dataloader = test_cfg = test_evaluator = None'


def file(content: str | bytes, *words: str, name: str = 'config.py') -> Make:
    """A command on a config of its own, beside others that it may have as bases."""

    def make(kit: Kit, folder: Path) -> list:
        for other, text in {'other.py': "_base_ = './config.py'", 'first.py': 'a = 1', 'second.py': 'a = 2'}.items():
            (folder / other).write_text(text)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [words[0], name, *words[1:]]

    return make


def cases() -> Iterator[Case]:
    training = ('tools/train.py', '--work-dir', 'run')
    for name, (content, words) in FILES.items():
        yield Case(f'config {name}', file(content, *training), words)
    for name, content in {'config.txt': 'a = 1', 'config.yaml': 'a: [', 'config.json': '{"a": '}.items():
        yield Case(f'config in {name}', file(content, *training, name=name), (name,))
    yield Case('config in json that is a list', file('[1, 2]', *training, name='config.json'), ('config.json',))
    yield Case('config with escapes in its name', file('model = (', *training, name='con\nfig\x1b[2J.py'), ('never closed',))
    yield Case('config that is a folder', command('tools/train.py', '{folder}'), ('no such config',))
    for tool in ('tools/preflight.py', '.dev_scripts/studies/sweep_stem_lr.py', 'tools/test.py', 'tools/deploy/export_onnx.py'):
        more = () if tool.endswith(('preflight.py', 'lr.py')) else ('x.pth', *(('out.onnx',) if 'onnx' in tool else ()))
        yield Case(f'config that is not there for {tool}', command(tool, 'absent.py', *more), ('absent.py', 'no such config'))
        yield Case(f'config that is broken for {tool}', file('1 / 0', tool, *more), ('config.py', 'ZeroDivisionError'))
    study = '.dev_scripts/studies/compare_methods.py'
    yield Case('study that is not there', command(study, 'absent.py'), ('absent.py', 'no such study file'))
    yield Case('study that is broken', file('1 / 0', study), ('config.py', 'ZeroDivisionError'))
    yield Case('study without methods', file("config = metric = baseline = 'x'", study), ('config.py', 'methods'))
    yield Case('config without an optimizer to sweep', file('a = 1', '.dev_scripts/studies/sweep_stem_lr.py'), ('config.py',))

    for name, (text, words) in SETTINGS.items():
        yield Case(f'setting of {name}', train(text), words)
    yield Case('setting of a work dir that is a file', config("work_dir = '{kit.onnx}'"), ('classifier.onnx',))
    wide = 'model = dict(head=dict(in_channels=100))'
    yield Case('setting of a width that the head has not', train(wide), ('config.py', 'traceback in'), status=1)
    yield Case('setting of a width that the checkpoint has not', test(wide), ('last.pth',))
    yield Case('setting of no toolbox', train('default_scope = None'), ('config.py', 'traceback in'), status=1)
    yield Case('setting of no data to test', test(NO_TEST), ('config.py',))
    yield Case('setting of no data to test, augmented', test(NO_TEST, '--tta'), ('config.py',))

    for name, options in OPTIONS.items():
        yield Case(f'option {name}', train('', *options), ('--cfg-options',))
    yield Case('option of a type there is not', train('', '--cfg-options', 'model.backbone.type=Nothing'), ('config.py', 'Nothing'))
    yield Case('option that is unknown', train('', '--rezume'), ('--rezume',))
    yield Case('option --amp without a GPU', train('', '--amp'), ('--amp',))
    for place, words in {'/dev/null/x': '/dev/null', '/proc/x': '/proc/x', 'x' * 300: 'File name too long'}.items():
        yield Case(f'option --work-dir {place[:12]}', config('', '--work-dir', place), (words,))
