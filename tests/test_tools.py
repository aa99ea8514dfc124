"""The command-line tools: real short runs on the three toolboxes, and what they say to bad input."""

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Payload, done, few, python, refused
from small_models import package

SCOPES = dict(imagenet='mmpretrain', coco='mmdet', cityscapes='mmseg')
METRIC = dict(imagenet='accuracy/top1', coco='coco/segm_mAP', cityscapes='mIoU')
EVERY_PICTURE = {'default_hooks.visualization.interval': 1}


def log_of(work_dir: Path) -> str:
    return next(work_dir.glob('*/*.log')).read_text()


@pytest.mark.parametrize('name', SCOPES)
def test_train_then_test_in_both_forms(name, trained, tools, tmp_path):
    checkpoint = trained(name, tools)
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    assert any('.kernel.' in key for key in state)  # the training form, though it was validated
    out, shown = tmp_path / ('labels' if name == 'cityscapes' else 'predictions.pkl'), tmp_path / 'shown'
    metrics = []
    for form, more in (('--reparameterize', ('--out', out, '--show-dir', shown)), ('--no-reparameterize', ())):
        path = tmp_path / f'{form}.json'
        done(tools.test(name, checkpoint, tmp_path / form, form, '--metrics', path, *more, options=EVERY_PICTURE))
        metrics.append(json.loads(path.read_text()))
        assert ('Re-parameterized 17 layers' in log_of(tmp_path / form)) == (form == '--reparameterize')
    assert METRIC[name] in metrics[0]
    for key, value in metrics[0].items():
        if 'time' not in key:
            assert value == pytest.approx(metrics[1][key], abs=1e-3), key
    predicted = len(list(out.glob('*.png')) if name == 'cityscapes' else pickle.loads(out.read_bytes()))
    assert predicted == dict(imagenet=10, coco=4, cityscapes=3)[name]
    assert list(shown.rglob('*.[jp][pn]g'))


@pytest.mark.parametrize('name', SCOPES)
def test_test_time_augmentation(name, trained, tools, tmp_path):
    checkpoint, options, metric = trained(name, tools), EVERY_PICTURE, METRIC[name]
    if name == 'coco':  # the stock augmentation merges boxes only
        refused(tools.test(name, checkpoint, tmp_path / 'work', '--tta'), '--tta', 'instance masks')
        options, metric = options | {'model.roi_head.mask_head': None, 'test_evaluator.metric': 'bbox'}, 'coco/bbox_mAP'
        state = torch.load(checkpoint, weights_only=False)['state_dict']
        checkpoint = tmp_path / 'boxes.pth'
        torch.save({key: value for key, value in state.items() if 'mask_head' not in key}, checkpoint)
    arguments = ('--tta', '--metrics', tmp_path / 'm.json', '--show-dir', tmp_path / 'shown')
    done(tools.test(name, checkpoint, tmp_path / 'work', *arguments, options=options))
    assert list((tmp_path / 'shown').rglob('*.[jp][pn]g'))
    assert metric in json.loads((tmp_path / 'm.json').read_text())
    assert 'Re-parameterized 17 layers' in log_of(tmp_path / 'work')


def test_probabilities_of_one_channel_are_averaged():
    from augmentation import mend_augmentation
    from mmengine.config import Config
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    module = torch.nn.Module()
    module.test_step, module.out_channels, module.decode_head = print, 1, SimpleNamespace(threshold=0.3)
    samples = []
    for probabilities in ([[0.2, 0.9]], [[0.3, 0.1]]):
        samples.append(SegDataSample(metainfo=dict(img_path='x')))
        samples[-1].seg_logits = PixelData(data=torch.tensor([probabilities]))
    cfg = Config(dict(default_scope='mmseg', model=dict(type='SegTTAModel')))
    mend_augmentation(cfg)
    (merged,) = MODELS.build(dict(cfg.model, module=module)).merge_preds([samples])
    assert merged.pred_sem_seg.data.flatten().tolist() == [0, 1]  # 0.25 and 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason='asks for a machine without a GPU')
def test_mixed_precision_needs_a_gpu(tools, tmp_path):
    refused(tools.train('coco', tmp_path, '--amp'), '--amp', 'needs a GPU')
    config = 'configs/imagenet/orepa-resnet50_8xb256-rsb-a2-ema-amp-300e_in1k.py'
    refused(tools.run('tools/train', config, '--work-dir', tmp_path), 'mixed precision', 'optim_wrapper.type=OptimWrapper')


def test_auto_scale_lr(tools, tmp_path):
    done(tools.train('coco', tmp_path / 'run', '--auto-scale-lr', '--no-validate', iterations=1))
    assert 'Scaling the original LR by 0.125' in log_of(tmp_path / 'run')
    refused(tools.train('cityscapes', tmp_path / 'other', '--auto-scale-lr'), 'base_batch_size')


@pytest.mark.parametrize('run', few(['train', 'test', 'test of another network'], 'train', 'test of another network'))
def test_stock_mmdet_scripts_run_the_same_config(run, trained, tools, tmp_path):
    """Only PYTHONPATH, another folder, and the script from the installed package."""
    tool, _, other = run.partition(' ')
    script = package('mmdet') / 'tools' / f'{tool}.py'
    pairs = [f'{key}={value}' for key, value in tools.options('coco', iterations=1).items()]
    checkpoint = [trained('imagenet' if other else 'coco', tools)] if tool == 'test' else []
    arguments = (ROOT / tools.CONFIGS['coco'], *checkpoint, '--work-dir', tmp_path / 'run', '--cfg-options', *pairs)
    result = python(script, *arguments, cwd=tmp_path)
    if other:  # mmengine would load what it can, and test a network of random layers
        assert result.returncode == 1 and 'CheckpointError' in result.stderr and 'does not fit the model' in result.stderr
        return
    assert result.returncode == 0, result.stderr[-2000:]
    log = log_of(tmp_path / 'run')
    assert 'coco/segm_mAP' in log
    assert 'Re-parameterized 17 layers' in log or tool == 'train'


# Bad input: one clear line, exit status 2, nothing trained and nothing overwritten.


def test_a_torchvision_of_another_torch(tools, tmp_path):
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = python(ROOT / 'tools' / 'preflight.py', ROOT / tools.CONFIGS['coco'], cwd=tmp_path, PYTHONPATH=path)
    refused((result.returncode, result.stderr), 'torchvision was built for another torch', 'torchvision::nms', 'in one command')


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, 'no such config'),
        ("_base_ = './absent.py'", 'absent.py'),
        pytest.param("_base_ = './broken.py'", 'has no end', marks=pytest.mark.slow),
        ('model = (', 'never closed'),
        ('# \xe9t\xe9', 'utf-8'),
        ("custom_hooks = 'CheckHook'", 'custom_hooks'),
    ],
)
def test_config_that_cannot_be_read(text, words, tools, tmp_path):
    if text is not None:
        (tmp_path / 'broken.py').write_bytes(text.encode('latin-1'))
    refused(tools.run('tools/train', tmp_path / 'broken.py'), 'broken.py', words)


@pytest.mark.parametrize(
    ('arguments', 'options', 'words'),
    [
        (('train',), {'model.backbone.depth.x': 1}, '--cfg-options'),
        (('train',), {'train_pipeline.99.type': 'x'}, '--cfg-options'),
        (('train',), {'model.backbone.method': 'orepa'}, "'orepa'"),
        (('train',), {'work_dir': 'mine.pth'}, 'mine.pth'),
        (('train',), {'load_from': 'http://127.0.0.1:9/x.pth'}, '127.0.0.1:9'),
        (('train', '--resume', 'mine.pth'), {}, 'mine.pth'),
        (('test', 'mine.pth', '--metrics', 'folder'), {}, 'folder'),
        (('test', 'loop.pth'), {}, 'loop.pth'),
        (('deploy/run_onnx', 'mine.pth', 'a.jpg'), None, 'mine.pth: cannot be loaded'),
        (('model_converters/reparameterize_model', 'mine.pth', 'folder'), {}, '--force'),
        (('model_converters/convert_checkpoint', 'mine.pth', 'out', '--reverse'), None, 'mine.pth'),
        (('model_converters/convert_checkpoint', 'mine.pth', 'mine.pth'), None, '--force'),
        (('model_converters/publish_model', 'mine.pth', 'mine.pth/out.pth'), None, 'mine.pth/out.pth'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, tuple) else None,
)
def test_what_the_user_can_mend_changes_nothing(arguments, options, words, exporter, tools, tmp_path):
    """The names among the arguments are of what lies in a folder: weights, a folder with a file, a link to itself."""
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), tmp_path / 'mine.pth')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'config.py').write_text('mine')
    (tmp_path / 'loop.pth').symlink_to('loop.pth')
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')}
    (tmp_path / 'run').mkdir()  # for logs
    name, *others = (str(tmp_path / word) if word.startswith(('mine', 'folder', 'loop', 'out')) else word for word in arguments)
    if options is not None:
        others.insert(0, tools.CONFIGS['imagenet'])
        options = tools.options('imagenet') | {'work_dir': str(tmp_path / 'run')} | options
        options['work_dir'] = str(tmp_path / options['work_dir'])
    refused(tools.run(f'tools/{name}', *others, options=options), words)
    assert not [path for path in (tmp_path / 'run').rglob('*') if path.suffix in ('.pth', '.partial')]
    shutil.rmtree(tmp_path / 'run')
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')} == before


def test_datasets_in_other_layouts_are_not_refused():
    """What is not a COCO file, class folders or label maps is left to the toolbox."""
    import preflight
    from mmengine.config import Config

    classes = dict(num_classes=10)
    for scope, dataset in (
        ('mmpretrain', dict(type='CIFAR10', data_root='absent', data_prefix='cifar10')),
        ('mmpretrain', dict(type='CustomDataset', data_root='absent', ann_file='list.txt')),
        ('mmdet', dict(type='VOCDataset', data_root='absent', ann_file='ImageSets/Main/train.txt')),
        ('mmdet', dict(type='RepeatDataset', times=2, dataset=dict(type='CocoDataset', data_root='s3://coco', ann_file='a.json'))),
    ):
        cfg = Config(dict(default_scope=scope, model=dict(head=classes), train_dataloader=dict(dataset=dataset)))
        preflight.check_data(cfg, ('train',))
    nested = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=dict(type='CocoDataset', ann_file='absent.json'))])
    cfg = Config(dict(default_scope='mmdet', model=dict(), train_dataloader=dict(dataset=nested)))
    with pytest.raises(preflight.UsageError, match='absent.json'):
        preflight.check_data(cfg, ('train',))


@pytest.mark.parametrize('name', SCOPES)
def test_missing_and_empty_datasets(name, tools, mini_data, tmp_path):
    options = {f'{split}_dataloader.dataset.data_root': str(tmp_path / 'absent') for split in ('train', 'val')}
    refused(tools.train(name, tmp_path / 'run', options=options), 'absent', 'data_root')
    root = tmp_path / 'empty'
    shutil.copytree(mini_data / f'{name}-mini', root, ignore=shutil.ignore_patterns('*.jpg', '*.png'))
    refused(tools.train(name, tmp_path / 'run', options={'train_dataloader.dataset.data_root': str(root)}), 'empty')
    assert not (tmp_path / 'run').exists()


def test_annotations_that_do_not_fit(tools, tmp_path):
    (tmp_path / 'annotations.json').write_text('not json')
    options = {'train_dataloader.dataset.ann_file': str(tmp_path / 'annotations.json')}
    refused(tools.train('coco', tmp_path / 'run', options=options), 'annotations.json', 'not JSON')
    options = {'train_dataloader.dataset.metainfo.classes': '("balloon",)'}
    refused(tools.train('coco', tmp_path / 'run', options=options), 'no category "balloon"', 'metainfo')


def test_a_fault_in_a_config_keeps_its_traceback(tools, tmp_path):
    """Stock code says what is wrong, and where it was met; the log of the run has it too."""
    with pytest.raises(KeyError, match='OREPAResNt is not in the mmdet::model registry'):
        tools.train('coco', tmp_path / 'run', options={'model.backbone.type': 'OREPAResNt'})
    log = log_of(tmp_path / 'run')
    assert 'Traceback (most recent call last)' in log and 'OREPAResNt' in log


def pretrained(path: Path, **options: str) -> dict:
    return {f'model.backbone.init_cfg.{key}': value for key, value in dict(type='Pretrained', checkpoint=str(path), **options).items()}


def test_checkpoint_that_is_missing_or_damaged(trained, tools, tmp_path):
    refused(tools.test('imagenet', tmp_path / 'none.pth', tmp_path / 'run'), 'none.pth', 'no such checkpoint')
    refused(tools.train('imagenet', tmp_path / 'run', options=pretrained(tmp_path / 'none.pth')), 'none.pth', 'no such checkpoint')
    path = tmp_path / 'cut.pth'
    whole = trained('imagenet', tools).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(tools.test('imagenet', path, tmp_path / 'run'), 'cut.pth', 'cut short or damaged')
    path.write_text('hello')
    refused(tools.test('imagenet', path, tmp_path / 'run'), 'cut.pth')


def test_checkpoint_with_a_pickle_payload(tools, tmp_path):
    path, target = tmp_path / 'evil.pth', tmp_path / 'was_here'
    torch.save(dict(state_dict={}, payload=Payload(os.mkdir, str(target))), path)
    refused(tools.test('imagenet', path, tmp_path / 'run'), 'evil.pth', 'would run code')
    for runner in ('Runner', 'FlexibleRunner'):  # which load at other moments
        options = {'load_from': str(path), 'runner_type': runner}
        refused(tools.train('imagenet', tmp_path / 'run', options=options), 'evil.pth', 'would run code')
    assert not target.exists()


def test_checkpoint_of_another_architecture(trained, tools, tmp_path):
    checkpoint = trained('imagenet', tools)
    wider = {'model.backbone.base_channels': 32, 'model.head.in_channels': 256}
    refused(tools.test('imagenet', checkpoint, tmp_path / 'run', options=wider), 'last.pth', 'of another shape')
    refused(tools.test('coco', checkpoint, tmp_path / 'run'), 'last.pth', 'does not fit the model')
    refused(tools.test('coco', checkpoint, tmp_path / 'run', '--out', tmp_path / 'x.json'), 'x.json', '.pkl')
    options = pretrained(checkpoint, prefix='neck.')
    refused(tools.train('coco', tmp_path / 'run', options=options), 'last.pth', 'no weights under the prefix "neck."')


def test_forms_that_do_not_match(trained, tools, tmp_path):
    from mmengine.config import Config
    from mmpretrain.registry import MODELS

    import orepa_mm

    narrow = {'model.backbone.stem_channels': 16, 'model.backbone.init': 'published'}
    cfg = Config.fromfile(ROOT / tools.CONFIGS['imagenet'])
    cfg.merge_from_dict(narrow)
    deployed, run = tmp_path / 'deployed.pth', tmp_path / 'run'
    torch.save(dict(state_dict=orepa_mm.reparameterize(MODELS.build(cfg.model).eval()).state_dict()), deployed)
    refused(tools.test('imagenet', deployed, run, options=narrow), 'deployed.pth', 'backbone.conv1.weight', 'plain_stem=True')
    options = narrow | {'model.backbone.plain_stem': True}  # then it is expanded into the branches
    done(tools.test('imagenet', deployed, tmp_path / 'plain-stem', '--no-reparameterize', options=options))
    plain = {'model.backbone.conv_cfg.type': 'Conv2d', 'model.backbone.init': None}
    result = tools.test('imagenet', trained('imagenet', tools), run, '--no-reparameterize', options=plain)
    refused(result, 'last.pth', 'training-time branches', 'OREPAConv2d')


def test_layers_that_cannot_be_built(tools, tmp_path):
    branches = {'model.roi_head.mask_head.conv_cfg.type': 'OREPAConv2d', 'model.neck.conv_cfg.type': 'OREPAConv2d'}
    done(tools.train('coco', tmp_path / 'run', '--no-validate', options=branches))  # in neck and head they are fine
    even = branches | {'model.roi_head.mask_head.conv_kernel_size': 4}
    refused(tools.train('coco', tmp_path / 'even', options=even), 'OREPAConv2d', 'odd', 'kernel_size=4')


@pytest.mark.parametrize('name', SCOPES)
def test_measuring_both_forms(name, trained, tools, mini_data, tmp_path):
    import report

    root = str(mini_data / f'{name}-mini')
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{ROOT / tools.CONFIGS[name]}'\ntrain_dataloader = test_dataloader = dict(dataset=dict(data_root={root!r}))\n"
    )
    measured = report.measure(config, trained(name, tools), runs=1)
    assert measured['parameters'][0] > 1.5 * measured['parameters'][1]
    assert measured['difference'] < 1e-4 and min(*measured['latency'], *measured['step']) > 0
    rows = report.table_rows([{METRIC[name]: 0.5}, {}], measured, [('metric', METRIC[name], '.2f')])
    assert rows[0] == ('metric', '0.50', 'none') and len(rows) == 5
    report.plot_losses(trained(name, tools).parent, tmp_path / 'loss.png', 'A <title>')
    report.write_page(tmp_path / 'report.html', 'A <title>', [], [report.Section(rows, 'loss.png')], report.Steps('a', tmp_path))
    page = (tmp_path / 'report.html').read_text()
    assert '<h1>A &lt;title&gt;</h1>' in page and 'src="loss.png"' in page and '<td>none</td>' in page


@pytest.mark.slow
def test_pipeline_from_pretraining_to_reparameterized_transfer(tmp_path):
    command = (ROOT / 'demo' / 'pipeline.py', '--short', '--out', tmp_path / 'out')
    result = python(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert all(word in page for word in ('Classifier', 'Detector', 'Segmentor', 'top-1', 'mIoU', 'bbox mAP'))
    assert all((tmp_path / 'out' / f'loss_{name}.png').is_file() for name in ('classifier', 'detector', 'segmentor'))
    again = python(*command, cwd=tmp_path)
    assert again.returncode == 2 and 'is not empty' in again.stderr
