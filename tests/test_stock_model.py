"""What reparameterize_model.py writes: the stock model, with the same outputs."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import ROOT, few
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from small_models import stock as stock_config_of
from torch import nn

from orepa_mm import OREPAConv2d, reparameterize
from orepa_mm.deploy.batches import random_batch
from orepa_mm.deploy.loading import build_model
from orepa_mm.deploy.parts import PartComparison
from orepa_mm.deploy.stock_config import stock_config
from orepa_mm.deploy.stock_files import write_stock_model
from orepa_mm.deploy.stock_model import to_stock_model
from orepa_mm.engine.reparameterize_hook import ReparameterizeHook
from orepa_mm.errors import DeployError
from orepa_mm.reparam.comparison import largest_difference, tensors

NARROW = dict(stem_channels=8, base_channels=8, frozen_stages=-1, init_cfg=None)
CONVS = (dict(type='OREPAConv2d'), dict(type='DBBConv2d'))
SMALL = dict(backbone=dict(NARROW, depth=18))
REPVGG = dict(num_blocks=(1, 1, 1, 1), width_factor=(0.125,) * 4, group_layer_map=None, se_cfg=None)
RPN = dict(rpn_head=dict(in_channels=16, feat_channels=16))
BOXES = dict(bbox_head=dict(in_channels=16, fc_out_channels=32), bbox_roi_extractor=dict(out_channels=16))
MASKS = dict(roi_head=dict(BOXES, mask_head=dict(in_channels=16), mask_roi_extractor=dict(out_channels=16)))
DENSE = dict(in_channels=16, feat_channels=16)
FPN = dict(neck=dict(in_channels=[8, 16, 32, 64], out_channels=16))
HEADS = dict(decode_head=dict(in_channels=64, channels=16), auxiliary_head=dict(in_channels=32, channels=16))


def classifier(network: str, channels: int, **backbone) -> tuple[str, dict]:
    return f'imagenet/{network}_4xb64-120e_in1k', dict(backbone=NARROW | backbone, head=dict(in_channels=channels))


MODELS = {  # name -> config, what is narrowed in its model
    **{f'resnet{depth}-{method}': classifier(f'{method}-resnet{depth}', channels)
       for depth, channels in ((18, 64), (50, 256)) for method in ('orepa', 'dbb')},
    'wideresnet18': classifier('orepa-wideresnet18-x2', 64),
    'resnext50': classifier('orepa-resnext50-32x4d', 256, groups=4, width_per_group=4),
    'resnext50-dbb': classifier('orepa-resnext50-32x4d', 256, groups=4, method='DBB'),
    'seresnet50': classifier('orepa-resnet50', 256, type='OREPASEResNet'),
    'plain-stem': classifier('orepa-resnet18', 64, plain_stem=True, branches='light', init='balanced'),
    **{f'repvgg-{method}': ('imagenet/orepa-repvgg-A0_4xb64-120e_in1k',
                            dict(backbone=dict(arch=dict(REPVGG, _delete_=True), method=method), head=dict(in_channels=64)))
       for method in ('OREPA', 'RepVGG')},
    'faster-rcnn': ('coco/faster-rcnn_orepa-r50_fpn_1x_coco', SMALL | FPN | RPN | dict(roi_head=BOXES)),
    'mask-rcnn': ('coco/mask-rcnn_orepa-r50_fpn_1x_coco', SMALL | FPN | RPN | MASKS),
    'mask-rcnn-dbb': ('coco/mask-rcnn_dbb-r50_fpn_1x_coco', SMALL | FPN | RPN | MASKS),
    'retinanet': ('coco/retinanet_orepa-r50_fpn_1x_coco', SMALL | FPN | dict(bbox_head=DENSE)),
    'retinanet-convs': ('coco/retinanet_orepa-r50_fpn_1x_coco', SMALL | dict(
        bbox_head=dict(DENSE, conv_cfg=CONVS[0]), neck=dict(FPN['neck'], conv_cfg=CONVS[1], norm_cfg=dict(type='BN')))),
    'rtmdet-ins': ('coco/rtmdet-ins_orepa-r50_8xb32-300e_coco',
                   SMALL | dict(neck=dict(in_channels=[16, 32, 64], out_channels=16), bbox_head=DENSE)),
    'retinanet-repvgg': ('coco/retinanet_orepa-r50_fpn_1x_coco', FPN | dict(
        bbox_head=DENSE, backbone=dict(_delete_=True, type='OREPARepVGG', arch=REPVGG, out_indices=(0, 1, 2, 3)))),
    'pspnet': ('cityscapes/pspnet_orepa-r50-d8_4xb2-40k_cityscapes-512x1024', SMALL | HEADS),
    **{f'deeplabv3plus-{method}': (f'cityscapes/deeplabv3plus_{method}-r50-d8_4xb2-40k_cityscapes-512x1024', SMALL | HEADS | dict(
        decode_head=dict(HEADS['decode_head'], c1_in_channels=8, c1_channels=8))) for method in ('orepa', 'dbb')},
}  # fmt: skip


def config_of(name: str) -> Config:
    path, options = MODELS[name]
    cfg = Config.fromfile(ROOT / 'configs' / f'{path}.py')
    cfg.merge_from_dict(dict(model=deepcopy(options)))
    return cfg


def trained(cfg: Config) -> nn.Module:
    """A model away from its initial values, in evaluation mode."""
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith('scale'):
                parameter.add_(0.05 + 0.05 * torch.rand_like(parameter))
    return model.eval()


def check_content(folder: Path) -> None:
    """Nothing of this package is left."""
    text = (folder / 'config.py').read_text()
    assert 'orepa' not in text.lower() and 'Pretrained' not in text and 'Reparameterize' not in text
    checkpoint = torch.load(folder / 'model.pth', weights_only=True)
    assert set(checkpoint) == {'meta', 'state_dict'}
    meta = checkpoint['meta']
    assert meta['source'] == 'trained.pth' and len(meta['source_sha256']) == 64 and meta['dataset_meta'] == dict(classes=('a', 'b'))
    assert set(meta['largest_difference']) == {'float32', 'float64'} and json.dumps(meta['largest_difference'])
    assert Config.fromstring(meta['cfg'], file_format='.py').model == Config.fromfile(folder / 'config.py').model


@torch.no_grad()
def outputs(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """A model's features, and what its head that sees them whole makes of them."""
    features = model.extract_feat(inputs)
    heads = [getattr(model, name) for name in ('rpn_head', 'bbox_head', 'decode_head', 'head') if getattr(model, name, None) is not None]
    return list(tensors((features, heads[0](features))))


@pytest.mark.parametrize('name', few(MODELS, *(name for name, (path, _) in MODELS.items() if path.startswith('coco'))))
def test_written_models(name, tmp_path):
    """``test_deployed_tools`` reads one of each toolbox where this package cannot be imported."""
    cfg = config_of(name)
    model = trained(cfg)
    model.dataset_meta = dict(classes=('a', 'b'))
    batch = random_batch(cfg, count=1)
    stock = to_stock_model(cfg, model, [batch])
    assert not stock.unreached
    assert stock.differences[torch.float64] <= 1e-10  # rounding, through up to a hundred layers
    assert stock.differences[torch.float32] <= 1e-5
    torch.save(model.state_dict(), tmp_path / 'trained.pth')
    write_stock_model(tmp_path, stock, tmp_path / 'trained.pth')
    check_content(tmp_path)
    written = Config.fromfile(tmp_path / 'config.py')
    assert written.load_from == str(tmp_path / 'model.pth')
    again = build_model(written)
    again.load_state_dict(torch.load(written.load_from, weights_only=True)['state_dict'], strict=True)
    inputs = model.data_preprocessor(batch, False)['inputs']
    assert largest_difference(outputs(model, inputs), outputs(again.eval(), inputs)) <= 1e-5


WITHOUT_DENSE_OUTPUTS = {
    'mmdet/condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': {},
    'mmdet/yolact/yolact_r50_1xb8-55e_coco': {},
    'mmdet/sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco': {},
    'mmdet/dab_detr/dab-detr_r50_8xb2-50e_coco': {'model.neck.in_channels': [128], 'model.num_queries': 10},
    'mmdet/cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco': {},
    'mmseg/point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024': {
        'model.backbone.deep_stem': True, 'model.pretrained': None, 'model.decode_head.0.norm_cfg.type': 'BN'},
}  # fmt: skip


@pytest.mark.parametrize('name', few(WITHOUT_DENSE_OUTPUTS, *list(WITHOUT_DENSE_OUTPUTS)[1::2]))
def test_models_that_only_predict(name):
    """Their heads need a loss's inputs, queries or single precision, and are the stock ones anyway."""
    cfg = stock_config_of(*name.split('/', 1))
    backbone = {'type': 'OREPAResNet', 'depth': 18, 'base_channels': 16, 'init_cfg': None, 'norm_cfg': dict(type='BN')}
    necks = {'model.neck.in_channels': [16, 32, 64, 128]}
    cfg.merge_from_dict({f'model.backbone.{key}': value for key, value in backbone.items()} | necks | WITHOUT_DENSE_OUTPUTS[name])
    stock = to_stock_model(cfg, trained(cfg), [random_batch(cfg, count=1)])
    assert stock.differences[torch.float64] <= 1e-10 and stock.differences[torch.float32] <= 1e-5 and not stock.unreached


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([OREPAConv2d(4, 4, 3, padding=1), OREPAConv2d(4, 4, 3, padding=1)])

    def forward(self, x):
        return self.convs[0](x.to(torch.float32) if x.dtype == torch.float32 else x.nothing)


class Predicts(BaseModel):
    """Its head is for single precision; one layer is never called, and predicting fails at the end."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(OREPAConv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = Head()

    def forward(self, x, mode):
        return self.head(self.backbone(x)).nothing


def test_parts_that_cannot_be_run_alone():
    model = Predicts().eval()
    stock = reparameterize(deepcopy(model))
    batch = dict(x=torch.randn(2, 3, 8, 8))
    comparison = PartComparison(model, stock)
    with pytest.raises(AttributeError):  # while a layer waits to be compared
        comparison.run(batch)
    assert comparison.unreached == {'head.convs.1'} and max(comparison.differences.values()) < 1e-6
    stock.backbone[0].weight.data[0] += 0.1
    comparison = PartComparison(model, stock)
    with pytest.raises(AttributeError):
        comparison.run(batch)
    assert comparison.differences[torch.float32] > 1e-3
    model.head.convs = stock.head.convs = nn.ModuleList([OREPAConv2d(4, 4, 3, padding=1).eval()])
    PartComparison(model, stock).run(batch)


def test_stock_blocks_that_deploy_themselves_are_built_deployed(tmp_path):
    cfg = config_of('resnet18-orepa')
    arch = dict(num_blocks=[1] * 4, width_factor=[0.25] * 4, num_conv_branches=[2] * 4, num_se_blocks=[0, 0, 0, 1])
    cfg.model.backbone = dict(type='MobileOne', arch=arch)
    cfg.model.head.in_channels = 128
    stock = to_stock_model(cfg, trained(cfg), [random_batch(cfg, count=1)])
    assert stock.cfg.model.backbone.deploy and stock.differences[torch.float64] <= 1e-10


def wrong_state(plain, stock) -> dict:
    """With one weight that is another."""
    state = dict(plain.state_dict())
    key = next(key for key in state if key.endswith('conv2.weight'))
    state[key] = state[key].clone()
    state[key].view(-1)[0] += 0.1
    return state


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('repvgg-OREPA', {'backbone.arch.se_cfg': dict(ratio=4, _delete_=True)}, 'squeeze and excitation'),  # of RepVGG has no stock class
        ('pspnet', {'decode_head.conv_cfg': CONVS[1], 'decode_head.norm_cfg': dict(type='GN', num_groups=4)}, 'adds a bias'),
        ('resnet18-orepa', {'backbone.method': 'none'}, 'no layer with training-time branches'),
        ('resnet18-orepa', {}, 'differ from the training form'),
    ],
)
def test_what_is_refused(name, options, message, monkeypatch):
    cfg = config_of(name)
    cfg.merge_from_dict({f'model.{key}': deepcopy(value) for key, value in options.items()})
    if not options:
        monkeypatch.setattr('orepa_mm.deploy.stock_model.stock_state', wrong_state)
    with pytest.raises(DeployError, match=message):
        to_stock_model(cfg, trained(cfg), [random_batch(cfg, count=1)])


def test_no_hook_of_ours_is_left():
    """Whichever there are, by name or class; the checkpoint hook becomes the stock one."""
    ours = [name for name, hook in HOOKS.module_dict.items() if hook.__module__.startswith('orepa_mm.')]
    assert {'ReparameterizeHook', 'OREPAHook', 'AtomicCheckpointHook'} <= set(ours)
    hooks = [dict(type=name) for name in ours if name != 'AtomicCheckpointHook']
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            custom_hooks=[*hooks, dict(type='EMAHook'), dict(type=ReparameterizeHook), dict(type=EMAHook)],
            default_hooks=dict(
                checkpoint=dict(type='AtomicCheckpointHook', interval=1, _scope_='orepa_mm'),
                seed=dict(type='SeedHook'),
                orepa=dict(type='OREPAHook'),
            ),
            test_dataloader=dict(sampler=dict(type='DefaultSampler', _scope_='mmdet')),
        )
    )
    stock = stock_config(cfg)
    assert stock.custom_hooks == [dict(type='EMAHook'), dict(type='mmengine.hooks.ema_hook.EMAHook')]
    assert stock.test_dataloader == cfg.test_dataloader
    assert stock.default_hooks == dict(checkpoint=dict(type='CheckpointHook', interval=1))
