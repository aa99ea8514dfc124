"""Every config builds its model, data and optimizer and takes a training step, and the stem's learning rate is what the config says."""

import importlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, few, python
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS, VISUALIZERS, init_default_scope
from mmengine.runner import Runner
from small_models import stock

import orepa_mm
from orepa_mm.deploy.loading import build_model
from orepa_mm.engine.branches_hook import BranchesHook

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/*.py') if '_base_' not in path.parts)
# A stem that is frozen or plain is what these two configs are for.
OTHER_STEMS = [name for name in CONFIGS if '-stem_' in name]
TRANSFER = [name for name in CONFIGS if 'imagenet/' not in name and name not in OTHER_STEMS]
NONE = [name for name in CONFIGS if 'none-' in name]
STEM = ('backbone.conv1.', 'backbone.bn1.')
SIZES = {'scale', 'img_scale', 'crop_size', 'size'}


@pytest.fixture(scope='session')
def imagenet(tmp_path_factory) -> Path:
    """The layout of ImageNet: 1000 class folders, one picture each."""
    root = tmp_path_factory.mktemp('imagenet')
    picture = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))[1].tobytes()
    for split in ('train', 'val'):
        for i in range(1000):
            folder = root / split / f'n{i:08d}'
            folder.mkdir(parents=True)
            (folder / f'{i}.JPEG').write_bytes(picture)
    return root


def smaller(value, size: int):
    """Every picture size of a pipeline brought down to ``size``."""
    if isinstance(value, dict):
        return {key: resized(item, size) if key in SIZES else smaller(item, size) for key, item in value.items()}
    return [smaller(item, size) for item in value] if isinstance(value, list) else value


def resized(value, size: int):
    if isinstance(value, int):
        return size
    return [resized(item, size) for item in value] if isinstance(value, list) else (size, size)


def read(name: str, work_dir: Path, data_root: Path, size: int = 64) -> Config:
    """A config with its batch of two small pictures, on small data, and without the checkpoints nobody has yet."""
    cfg = Config.fromfile(ROOT / name)
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        dataset = loader.dataset.get('dataset', loader.dataset)
        dataset.data_root = str(data_root)
        dataset.pipeline = smaller(dataset.pipeline, size)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (size, size)
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'  # mixed precision needs a GPU
    cfg.work_dir = str(work_dir)
    return cfg


def data_of(name: str, mini_data: Path, imagenet: Path) -> Path:
    family = name.split('/')[1]
    return imagenet if family == 'imagenet' and 'mini' not in name else mini_data / f'{family}-mini'


def test_there_is_a_config_for_every_row_of_the_paper_and_every_method():
    networks = [(('none', 'dbb', 'orepa'), [f'resnet{depth}' for depth in (18, 34, 50, 101)])]
    networks += [(('none', 'orepa'), ('wideresnet18-x1.5', 'wideresnet18-x2', 'resnext50-32x4d'))]
    networks += [(('acnet', 'expandnet'), ('resnet18', 'resnet50')), (('orepa',), ('repvgg-A0', 'repvgg-A1', 'repvgg-A2'))]
    names = {f'{method}-{net}_4xb64-120e_in1k' for methods, nets in networks for method in methods for net in nets}
    names |= {f'repvgg-{arch}_4xb64-120e_in1k' for arch in ('A0', 'A1', 'A2')}
    for method in ('none', 'dbb', 'orepa'):
        names |= {f'{detector}_{method}-r50_fpn_1x_coco' for detector in ('faster-rcnn', 'retinanet', 'mask-rcnn')}
        names |= {f'{net}_{method}-r50-d8_4xb2-40k_cityscapes-512x1024' for net in ('pspnet', 'deeplabv3plus')}
    assert names <= {Path(name).stem for name in CONFIGS}


@pytest.mark.parametrize('name', CONFIGS)
def test_it_builds(name, mini_data, imagenet, tmp_path):
    cfg = read(name, tmp_path, data_of(name, mini_data, imagenet))
    assert cfg.default_hooks.orepa == dict(type='OREPAHook')
    init_default_scope(cfg.default_scope)
    VISUALIZERS.build(dict(cfg.visualizer, name='test'))  # some hooks ask for it
    for hook in (*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])):
        HOOKS.build(dict(hook))
    # Without values, which take longest to draw; mmpretrain's classes look at some.
    with torch.device('cpu' if cfg.default_scope == 'mmpretrain' else 'meta'):
        model = build_model(cfg)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for split in ('train', 'val'):
        assert len(Runner.build_dataloader(cfg[f'{split}_dataloader']))
    if name in TRANSFER:
        check_stem(model, optim_wrapper.optimizer, cfg)
    for scheduler in cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]:
        settings = {key: value for key, value in scheduler.items() if key != 'convert_to_iter_based'}  # it needs the loader's length
        PARAM_SCHEDULERS.build(settings, default_args=dict(optimizer=optim_wrapper))


STEPS = (
    'imagenet/orepa-resnet18_4xb64-120e_in1k',
    'imagenet/dbb-resnet18_4xb64-120e_in1k',
    'imagenet/acnet-resnet18_4xb64-120e_in1k',
    'imagenet/none-resnet50_4xb64-120e_in1k',
    'imagenet/orepa-repvgg-A0_4xb64-120e_in1k',
    'coco/mask-rcnn_orepa-r50_fpn_1x_coco',
    'coco/retinanet_orepa-r50-stock-init_fpn_1x_coco',
    'cityscapes/pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024',
)


@pytest.mark.parametrize('name', few(CONFIGS, *(f'configs/{name}.py' for name in STEPS)))
def test_a_training_step(name, mini_data, imagenet, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', '')  # the Runner logs it, and formatting it takes longer than the step
    runner = Runner.from_cfg(read(name, tmp_path, data_of(name, mini_data, imagenet)))
    model = runner.model.train()
    optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    for hook in runner.hooks:
        if isinstance(hook, BranchesHook):
            runner.optim_wrapper = optim_wrapper
            hook.before_train(runner)
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    before = {key: p.detach().clone() for key, p in model.named_parameters() if p.dim() > 1}
    losses = model.train_step(batch, optim_wrapper)
    assert len(batch['inputs']) == 2 and losses['loss'].isfinite()
    after = dict(model.named_parameters())
    moved = sum(not torch.equal(after[key], value) for key, value in before.items() if after[key].requires_grad)
    assert moved > len(before) / 2  # branches behind a scale of zero come later
    assert next(iter(runner.build_dataloader(runner.cfg.val_dataloader)))['inputs'][0].shape[0] == 3


def check_stem(model: torch.nn.Module, optimizer: torch.optim.Optimizer, cfg: Config) -> None:
    """The stem's parameters have the base rate times the multiplier, all others the base rate, and none of the stem is frozen."""
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    (multiplier,) = {settings.lr_mult for settings in keys.values()}
    assert multiplier != 1 and set(keys) == {'backbone.conv1', 'backbone.bn1'}
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    stem = [name for name, _ in model.named_parameters() if name.startswith(STEM)]
    assert {tuple(name.split('.')[:2]) for name in stem} == {('backbone', 'conv1'), ('backbone', 'bn1')}
    for name, p in model.named_parameters():
        expected = cfg.optim_wrapper.optimizer.lr * (multiplier if name in stem else 1)
        assert p.requires_grad or name not in stem, name
        if p.requires_grad:
            assert rates[id(p)] == pytest.approx(expected), name


def wide(channels: int) -> dict:
    return dict(backbone=dict(stem_channels=channels, base_channels=channels), head=dict(in_channels=8 * channels))


STOCK = {  # the toolbox's own config of the same network, and what makes it that
    **{f'resnet{depth}': (f'mmpretrain/resnet/resnet{depth}_8xb32_in1k', {}) for depth in (18, 34, 50, 101)},
    'wideresnet18-x1.5': ('mmpretrain/resnet/resnet18_8xb32_in1k', wide(96)),
    'wideresnet18-x2': ('mmpretrain/resnet/resnet18_8xb32_in1k', wide(128)),
    'resnext50-32x4d': ('mmpretrain/resnext/resnext50-32x4d_8xb32_in1k', {}),
    'faster-rcnn_none-r50_fpn_1x': ('mmdet/faster_rcnn/faster-rcnn_r50_fpn_1x_coco', {}),
    'retinanet_none-r50_fpn_1x': ('mmdet/retinanet/retinanet_r50_fpn_1x_coco', {}),
    **{f'mask-rcnn_none-{net}_coco': (f'mmdet/mask_rcnn/mask-rcnn_{net}_coco', {})
       for net in ('r50_fpn_1x', 'r50_fpn_2x', 'r101_fpn_1x')},
    'mask-rcnn_none-r50_fpn_1x_cityscapes': ('mmdet/cityscapes/mask-rcnn_r50_fpn_1x_cityscapes', {}),
    **{f'{net}_none': (f'mmseg/{net}/{net}_r50b-d8_4xb2-80k_cityscapes-512x1024', {}) for net in ('pspnet', 'deeplabv3plus')},
}  # fmt: skip


@pytest.mark.parametrize('name', few(NONE, *NONE[::4]))
def test_none_is_the_stock_model(name):
    path, options = next(value for key, value in STOCK.items() if f'none-{key}_' in name or f'/{key}' in name)
    cfg = stock(*path.split('/', 1))
    cfg.merge_from_dict(dict(model=options))
    cfg.model.pop('pretrained', None)
    names = [[(key, p.shape) for key, p in build_model(each).named_parameters()] for each in (Config.fromfile(ROOT / name), cfg)]
    assert names[0] == names[1]


def test_configs_are_read_where_nothing_was_imported_before(tmp_path):
    """As the toolboxes' own scripts read them; with OneDL's packages mmengine alone does not find mmseg's configs."""
    name = ROOT / 'configs/cityscapes/pspnet_none-r50-d8_4xb2-40k_cityscapes-512x1024.py'
    code = f'from mmengine.config import Config; print(Config.fromfile({str(name)!r}).model.backbone.type)'
    result = python('-c', code, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.split()[-1] == 'ResNet', result.stderr[-2000:]


def test_the_paper_s_rule_for_biases_and_norms():
    cfg = Config.fromfile(ROOT / 'configs/imagenet/orepa-resnet18_4xb64-120e_in1k.py')
    model = build_model(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    for name, p in model.named_parameters():
        bias = name.endswith('.bias')
        assert groups[id(p)]['lr'] == pytest.approx(0.2 if bias else 0.1), name
        assert groups[id(p)]['weight_decay'] == (0 if bias or id(p) in norms else 1e-4), name
    assert cfg.train_cfg.max_epochs == 120 and cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 256


def test_cosine_decay_in_every_iteration_over_120_epochs(imagenet, tmp_path):
    cfg = read('configs/imagenet/orepa-resnet18_4xb64-120e_in1k.py', tmp_path, imagenet)
    runner = Runner.from_cfg(cfg)
    runner.train_dataloader  # noqa: B018  what an epoch is
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    (scheduler,) = runner.build_param_scheduler(cfg.param_scheduler)
    assert scheduler.T_max == 120 * 500 and not scheduler.by_epoch  # 500 batches of two


def test_the_frozen_stem():
    cfg = Config.fromfile(ROOT / 'configs/coco/mask-rcnn_orepa-r50-frozen-stem_fpn_1x_coco.py')
    model = build_model(cfg).train()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, _ in model.named_parameters() if name.startswith(STEM)] and len(frozen) == 29
    assert not cfg.optim_wrapper.paramwise_cfg


@pytest.mark.parametrize(
    'name', few([name for name in CONFIGS if 'stock' in name], 'configs/coco/mask-rcnn_orepa-r50-from-stock_fpn_1x_coco.py')
)
def test_recipes_from_stock_weights_have_branches_beside_the_optimizer(name):
    """The model is the plain recipe's. The backbone has branches, but for its stem, which as a product of kernels would move too far."""
    cfg, plain = (Config.fromfile(ROOT / each) for each in (name, re.sub('orepa-r50-(stock-init|from-stock)', 'none-r50', name)))
    assert cfg.load_from or cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    for each in (cfg, plain):
        each.model.backbone.init_cfg = None
    assert cfg.model == plain.model
    model = build_model(cfg)
    hook = HOOKS.build(dict(cfg.default_hooks.branches))
    attached = orepa_mm.attach_branches(model, torch.optim.SGD(model.parameters(), 0.1), **hook.options)
    convolutions = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Conv2d) and path.startswith('backbone.')]
    assert convolutions[0] == 'backbone.conv1' and [update.path for update in attached.updates] == convolutions[1:]


def test_the_plain_stem_takes_the_squeezed_kernel():
    cfg = Config.fromfile(ROOT / 'configs/coco/mask-rcnn_orepa-r50-plain-stem_fpn_1x_coco.py')
    backbone, build = cfg.model.backbone, importlib.import_module('mmdet.registry').MODELS.build
    assert not cfg.optim_wrapper.paramwise_cfg and backbone.frozen_stages == -1 and backbone.plain_stem
    narrow = dict(type='OREPAResNet', depth=50, stem_channels=8, base_channels=8)
    deep, plain, again = (build(dict(narrow, plain_stem=stem)).eval() for stem in (False, True, True))
    plain.load_state_dict(deep.state_dict())
    assert type(plain.conv1) is torch.nn.Conv2d and plain.conv1.weight.requires_grad
    assert torch.equal(plain.conv1.weight, deep.conv1.weight)
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(plain(x)[-1], deep(x)[-1], rtol=1e-5, atol=1e-6)
    again.load_state_dict(plain.state_dict())  # which has the plain kernel
    assert torch.equal(again.conv1.weight, plain.conv1.weight)
    with pytest.raises(ValueError, match='plain_stem=True is for the 7x7 stem'):
        build(dict(narrow, plain_stem=True, deep_stem=True))
