"""Two lines in stock configs, trained by the toolboxes' own scripts; what is written tests where this package cannot be imported."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, done, few, python
from mmengine.config import Config
from mmengine.runner import Runner
from small_models import package, stock
from small_runs import last_checkpoint

LINES = """
custom_imports = dict(imports=['orepa_mm'], allow_failed_imports=False)
default_hooks = dict(branches=dict(type='BranchesHook', pattern='backbone', branches='{branches}'))
"""
LOADER = dict(batch_size=2, num_workers=0, persistent_workers=False)
CONFIGS = dict(
    mask_rcnn=('mmdet/mask_rcnn/mask-rcnn_r50_fpn_1x_coco', dict(model=dict(test_cfg=dict(rcnn=dict(score_thr=0.0))))),
    rtmdet=('mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco', dict(model=dict(test_cfg=dict(score_thr=0.0, min_bbox_size=-1)))),
    pspnet=('mmseg/pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024', dict(train_cfg=dict(max_iters=3, val_interval=3))),
    resnet=('mmpretrain/resnet/resnet18_8xb32_in1k', dict(model=dict(head=dict(num_classes=5)), data_preprocessor=dict(num_classes=5))),
)


def write_config(name: str, data: Path, folder: Path, lines: str = LINES) -> Path:
    """The stock config on small drawn data, with the two lines; the rest of it stays.

    All branches of a ResNet-50 and their momenta are checkpoints of 2 GB, so only the smaller networks have all.
    """
    lines = lines.format(branches='light' if 'r50' in CONFIGS[name][0] else 'full')
    path, changes = CONFIGS[name]
    scope, _, path = path.partition('/')
    base = stock(scope, path)
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=None), pretrained=None), randomness=dict(seed=0)))
    if scope == 'mmseg':
        cfg.model.data_preprocessor = dict(size=(64, 64))
    else:
        cfg.model.pop('pretrained')
        cfg.train_cfg = dict(max_epochs=1, val_interval=1)
    cfg.merge_from_dict(changes)
    for split in ('train', 'val', 'test'):
        folders = dict(mmdet='coco-mini', mmseg='cityscapes-mini', mmpretrain='imagenet-mini')
        dataset = dict(data_root=f'{data / folders[scope]}/')
        if scope == 'mmdet':
            cfg[f'{split}_evaluator'] = dict(ann_file=f'{dataset["data_root"]}annotations/instances_val2017.json')
            if split == 'train':
                dataset |= dict(filter_cfg=dict(filter_empty_gt=True, min_size=8))
        if scope == 'mmpretrain':
            dataset |= dict(metainfo=dict(classes=('circle', 'cross', 'diamond', 'rectangle', 'triangle')))
        cfg[f'{split}_dataloader'] = dict(LOADER, dataset=dataset)
    cfg.pop('train_evaluator', None)
    # What these mix in depends on all samples before, which a resumed run does not know.
    base.train_pipeline = [step for step in base.train_pipeline if step['type'] not in ('CachedMosaic', 'CachedMixUp')]
    for pipeline in (base.train_pipeline, base.test_pipeline):
        for step in pipeline:
            for key in ('scale', 'img_scale', 'size', 'crop_size'):
                if key in step and not isinstance(step[key], int):
                    step[key] = (128, 64) if scope == 'mmseg' and key == 'scale' else (64, 64)
    cfg.train_dataloader['dataset']['pipeline'] = base.train_pipeline
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader']['dataset']['pipeline'] = base.test_pipeline
    text = f"_base_ = '{package(scope) / 'configs' / path}.py'\n{cfg.dump()}{lines}"
    target = folder / f'{name}{"" if lines else "_stock"}.py'
    target.write_text(text)
    return target


def script(scope: str, tool: str, *args, blocked: Path | None = None) -> str:
    """Run a script that ships with a toolbox; with ``blocked``, where ``import orepa_mm`` fails."""
    if blocked is not None:
        (blocked / 'orepa_mm').mkdir(parents=True)
        (blocked / 'orepa_mm' / '__init__.py').write_text("raise ImportError('not here')\n")
    # The official packages do not load their own checkpoints without the variable.
    variables = dict(TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1', PYTHONPATH=str(ROOT if blocked is None else blocked))
    result = python(package(scope) / 'tools' / f'{tool}.py', *args, cwd=args[0].parent, **variables)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout + result.stderr


def metrics(folder: Path) -> dict:
    """What the last evaluation under a work dir logged."""
    rows = [json.loads(line) for path in sorted(folder.rglob('*.json')) for line in path.read_text().splitlines()]
    return {key: value for key, value in rows[-1].items() if key not in ('step', 'time', 'data_time')}


def check_stock_scripts(scope: str, config: Path, plain: Path, folder: Path) -> tuple[str, dict]:
    """Train ``config`` and test ``plain`` by a toolbox's own scripts, without this package; the log and the metrics."""
    log = script(scope, 'train', config, '--work-dir', folder / 'run')
    assert 'kernels train as branches beside the optimizer' in log
    checkpoint = last_checkpoint(folder / 'run')
    saved = torch.load(checkpoint, weights_only=False)
    assert saved['optimizer']['branches'] and not any('kernel.' in key for key in saved['state_dict'])
    script(scope, 'test', plain, checkpoint, '--work-dir', folder / 'test', blocked=folder / 'blocked')
    trained = metrics(folder / 'run')
    assert trained and trained == metrics(folder / 'test')
    return log, trained


def check_resuming(tools, config: Path, folder: Path, unit: str = 'epoch') -> None:
    """By our script: a run of two epochs or iterations that is stopped after the first ends as one that is not."""
    options = {'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': 1, 'default_hooks.seed.type': 'SeedHook'}

    def train(name: str, until: int, *args: str) -> dict:
        changes = options | {f'train_cfg.max_{unit}s': until, 'train_cfg.val_begin': 9}
        done(tools.run('tools/train', config, '--work-dir', folder / name, '--no-check-data', *args, options=changes))
        return torch.load(folder / name / f'{unit}_{until}.pth', weights_only=False)

    undisturbed = train('undisturbed', 2)
    train('resumed', 1)
    resumed = train('resumed', 2, '--resume')
    for key in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, resumed[key][name]) for name, value in undisturbed.get(key, {}).items())
    for path, values in undisturbed['optimizer']['branches'].items():
        assert all(torch.equal(value, resumed['optimizer']['branches'][path][key]) for key, value in values.items())


@pytest.mark.parametrize('name', few(CONFIGS))
def test_the_stock_script_trains_and_the_stock_network_tests(name, mini_data, tmp_path):
    config, plain = (write_config(name, mini_data, tmp_path, lines) for lines in (LINES, ''))
    log, _ = check_stock_scripts(CONFIGS[name][0].split('/')[0], config, plain, tmp_path)
    if name == 'rtmdet':
        assert 'EMAHook' in log and 'PipelineSwitchHook' in log  # the config's own custom_hooks


THREE = """
custom_imports = dict(imports=['orepa_mm'], allow_failed_imports=False)
default_hooks = dict(orepa=dict(type='OREPAHook'))
model.update(backbone=dict(conv_cfg=dict(type='OREPAConv2d'), init_cfg=None))
"""


def test_branches_in_a_stock_model_keep_the_hooks_of_its_config(mini_data, tmp_path):
    """Three lines; RTMDet is validated re-parameterized, with its averaged weights."""
    cfg = Config.fromfile(write_config('rtmdet', mini_data, tmp_path, THREE))
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'run'), tmp_path.name
    runner = Runner.from_cfg(cfg)
    assert {'EMAHook', 'PipelineSwitchHook', 'OREPAHook'} <= {type(hook).__name__ for hook in runner.hooks}
    runner.val()
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert 'Re-parameterized' in log and "largest difference of a layer's output" in log


@pytest.mark.parametrize('name', few(CONFIGS))
def test_our_script_resumes_as_if_undisturbed(name, mini_data, tmp_path, tools):
    """ResNetV1c of mmseg, CSPNeXt of RTMDet with its averaged weights: no class of ours is in any of them."""
    check_resuming(tools, write_config(name, mini_data, tmp_path), tmp_path, 'iter' if name == 'pspnet' else 'epoch')
