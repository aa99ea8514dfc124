#!/usr/bin/env python3
"""List all configs with their models' parameters and FLOPs in both forms, and write the tables of docs/configs.md.

    python .dev_scripts/list_configs.py --write docs/configs.md    # about 10 minutes on 2 cores
    python .dev_scripts/list_configs.py 'configs/imagenet/*'       # some of them, in the terminal

FLOPs are counted by mmengine's analysis, which counts a multiply-add as one, for one picture of the size the config tests at.
"""

import argparse
import fnmatch
import functools
import logging
import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools')]
from common import UsageError, run  # noqa: E402
from doc_tables import insert, write  # noqa: E402
from mmengine.analysis import FlopAnalyzer  # noqa: E402
from mmengine.config import Config  # noqa: E402
from progress import track  # noqa: E402

import orepa_mm  # noqa: E402
from orepa_mm.deploy.loading import build_model  # noqa: E402
from orepa_mm.layers import METHODS, SqueezedConv2d  # noqa: E402

DATA = {'ImageNet': 'ImageNet-1k', 'CocoDataset': 'COCO 2017', 'CityscapesDataset': 'Cityscapes'}
FAMILIES = {'imagenet': 'ImageNet', 'coco': 'COCO', 'cityscapes': 'Cityscapes'}
HEADER, RULE = '| config | params, M | FLOPs, G | paper |', '|---|---:|---:|---:|'
# Tables 2, 4 and 5 of the paper: the metric and the training memory in GB.
CLASSIFIERS = {
    'resnet18': dict(none=(71.21, 4.2), dbb=(71.77, 7.5), orepa=(72.13, 5.2)),
    'resnet34': dict(none=(74.13, 5.2), dbb=(74.83, 11.1), orepa=(75.04, 6.7)),
    'resnet50': dict(none=(76.70, 10.3), dbb=(76.89, 13.7), orepa=(77.31, 11.2)),
    'resnet101': dict(none=(77.71, 14.5), dbb=(78.02, 19.7), orepa=(78.29, 16.1)),
    'resnext50-32x4d': dict(none=(77.14, 12.4), orepa=(77.66, 13.0)),
    'wideresnet18-x1.5': dict(none=(73.69, 6.0), orepa=(74.51, 7.4)),
    'wideresnet18-x2': dict(none=(74.74, 7.4), orepa=(75.61, 10.4)),
}
REPVGGS = {
    'A0': dict(repvgg=(72.41, 3.8), orepa=(73.04, 4.2)),
    'A1': dict(repvgg=(74.46, 4.8), orepa=(74.85, 5.5)),
    'A2': dict(repvgg=(76.48, 5.8), orepa=(76.72, 7.4)),
}
TRANSFERS = {
    'faster-rcnn_{}-r50_fpn_1x_coco': dict(none=(36.5, 5.0), dbb=(36.5, 6.5), orepa=(37.0, 5.7)),
    'retinanet_{}-r50_fpn_1x_coco': dict(none=(36.2, 5.0), dbb=(36.6, 6.5), orepa=(36.9, 5.9)),
    # Listed with the toolbox's 40k schedule, the shortest.
    'pspnet_{}-r50-d8_4xb2-40k_cityscapes-512x1024': dict(none=(74.47, 11.5), dbb=(74.50, 13.0), orepa=(75.47, 12.3)),
    'deeplabv3plus_{}-r50-d8_4xb2-40k_cityscapes-512x1024': dict(none=(76.63, 13.1), dbb=(77.15, 14.6), orepa=(77.59, 13.8)),
}


class Network(nn.Module):
    """What a model computes for a picture, without the sorting and selecting between its stages."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list:
        model = self.model
        if not getattr(model, 'with_roi_head', False):
            return model(x, mode='tensor')
        features, heads = model.extract_feat(x), model.roi_head
        outputs = [features, model.rpn_head(features)]
        outputs.append(heads.bbox_head(self.regions(x, heads.bbox_roi_extractor, 1000)))
        if heads.with_mask:
            outputs.append(heads.mask_head(self.regions(x, heads.mask_roi_extractor, 100)))
        return outputs

    @staticmethod
    def regions(x: Tensor, extractor: nn.Module, count: int) -> Tensor:
        return x.new_zeros(count, extractor.out_channels, *extractor.roi_layers[0].output_size)


def configs(patterns: list[str]) -> list[str]:
    names = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/*.py') if '_base_' not in path.parts)
    chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ['*'])]
    if not chosen:
        raise UsageError(f'{patterns[0]}: no config matches; patterns are such as "configs/imagenet/*".')
    return sorted(chosen, key=_order)


def _order(name: str) -> tuple:
    """By family, the mini configs last in it, the methods of a network side by side."""
    _, family, stem = name.split('/')
    written = ['none-', '', *(f'{method.lower()}-' for method in METHODS)]
    place = next((place for place, method in enumerate(written) if method and re.search(rf'(^|_){method}', stem)), 1)
    return list(FAMILIES).index(family), 'mini' in stem, stem.replace(written[place], ''), place


@functools.cache
def read(name: str) -> Config:
    """A config by its path in the repository; not to be changed."""
    return Config.fromfile(ROOT / name)


def input_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the pictures the model is tested on; those of a segmentor are its crops, as in mmseg's tables."""
    if cfg.default_scope == 'mmseg':
        return tuple(cfg.model.data_preprocessor.size)
    steps = {step['type']: step for step in cfg.test_dataloader.dataset.pipeline}
    if 'CenterCrop' in steps:
        return (steps['CenterCrop']['crop_size'],) * 2
    width, height = steps['Resize']['scale']
    return height, width


def network_name(cfg: Config) -> str:
    backbone = cfg.model.backbone
    kind = backbone.type.removeprefix('OREPA')
    name = f'{kind}-{backbone.get("arch") or backbone.depth}'
    if (width := backbone.get('base_channels', 64)) != 64:
        name += f', {width / 64:g} x the width'
    if str((backbone.get('init_cfg') or {}).get('checkpoint')).startswith('torchvision:'):
        name += ', stock weights'
    if cfg.get('load_from') and branches_hook(cfg) is not None:
        name += ', stock detector'
    if backbone.get('plain_stem') or backbone.get('frozen_stages') == 0:
        name += ', plain stem' if backbone.get('plain_stem') else ', frozen stem'
    if (branches := backbone.get('branches')) is not None:
        name += f', {branches} branches'
    if (hook := branches_hook(cfg)) is not None:
        name += f', {hook.get("branches", "full")} branches' + ', fixed scales' * (hook.get('scales') == 'fixed')
    if cfg.default_scope == 'mmpretrain':
        return name
    model = cfg.model.decode_head.type.removesuffix('Head') if cfg.default_scope == 'mmseg' else cfg.model.type
    model = {'PSP': 'PSPNet', 'DepthwiseSeparableASPP': 'DeepLabV3+', 'RTMDet': 'RTMDet-Ins', 'MaskRCNN': 'Mask R-CNN'}.get(model, model)
    return f'{model.replace("FasterRCNN", "Faster R-CNN")}, {name}'


def branches_hook(cfg: Config) -> dict | None:
    hooks = (*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ()))
    return next((hook for hook in hooks if hook is not None and hook.get('type') == 'BranchesHook'), None)


def method_of(cfg: Config) -> str:
    backbone = cfg.model.backbone
    if (hook := branches_hook(cfg)) is not None:
        return hook.get('method', 'OREPA')
    return backbone.get('method', 'OREPA') if backbone.type.startswith('OREPA') else 'none'


def paper_figures() -> dict[str, tuple[float, float]]:
    """Config name -> metric and memory."""
    figures = {f'{method}-{net}_4xb64-120e_in1k': pair for net, row in CLASSIFIERS.items() for method, pair in row.items()}
    for arch, row in REPVGGS.items():
        figures[f'repvgg-{arch}_4xb64-120e_in1k'] = row['repvgg']
        figures[f'orepa-repvgg-{arch}_4xb64-120e_in1k'] = row['orepa']
    return figures | {pattern.format(method): pair for pattern, row in TRANSFERS.items() for method, pair in row.items()}


def schedule(cfg: Config, name: str) -> str:
    length = f'{cfg.train_cfg.max_epochs} epochs' if cfg.train_cfg.get('max_epochs') else f'{cfg.train_cfg.max_iters} iterations'
    return f'{length}, {gpus(cfg, name)} x {cfg.train_dataloader.batch_size}'


def gpus(cfg: Config, name: str) -> int:
    """How many GPUs the recipe is written for: as the file name says, or its learning rate."""
    if 'mini' in name:
        return 1
    written = re.search(r'_(\d+)xb\d+', name)
    return int(written[1]) if written else cfg.auto_scale_lr.base_batch_size // cfg.train_dataloader.batch_size


def description(name: str) -> tuple[str, ...]:
    """Network, method, data and schedule."""
    cfg = read(name)
    dataset = cfg.train_dataloader.dataset.get('dataset', cfg.train_dataloader.dataset)
    return network_name(cfg), method_of(cfg), 'drawn, as ' * ('mini' in name) + DATA[dataset.type], schedule(cfg, name)


def measure(name: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """Parameters and FLOPs of a config's model in training form and re-parameterized."""
    cfg = Config.fromfile(ROOT / name)
    height, width = input_size(cfg)
    divisor = cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    x = torch.zeros(1, 3, *(-(-side // divisor) * divisor for side in (height, width)))
    model = build_model(cfg).eval()
    parameters, flops = [], []
    for reparameterized in (False, True):
        if reparameterized:
            orepa_mm.reparameterize(model)
        network = Network(model).eval()
        with torch.no_grad():
            counted = FlopAnalyzer(network, (x,)).by_module()
        squeezing = (f'{name}.kernel' for name, module in network.named_modules() if isinstance(module, SqueezedConv2d))
        flops.append(counted[''] - sum(counted[name] for name in squeezing))
        parameters.append(sum(p.numel() for p in model.parameters()))
    return tuple(parameters), tuple(flops)


def cost(name: str) -> tuple[str, str]:
    (training, deployed), (trained, tested) = measure(name)
    return f'{training / 1e6:.2f} → {deployed / 1e6:.2f}', f'{trained / 1e9:.2f} → {tested / 1e9:.2f}'


def row(name: str, costs: tuple[str, str]) -> str:
    figure = paper_figures().get(Path(name).stem)
    shown = '' if figure is None else f'{figure[0]:.{1 if "/coco/" in name else 2}f}'
    return f'| [{Path(name).stem}](../{name}) | {" | ".join(costs)} | {shown} |'


def without_checkpoints(node):
    if isinstance(node, dict):
        return {key: without_checkpoints(value) for key, value in node.items() if key != 'init_cfg'}
    return [without_checkpoints(item) for item in node] if isinstance(node, list | tuple) else node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('patterns', nargs='*', metavar='PATTERN', help='configs to list (default: all)')
    parser.add_argument('--write', type=Path, metavar='MD', help='write the tables of all configs into this page')
    args = parser.parse_args()
    if args.write and args.patterns:
        raise UsageError('--write is for the page with all configs: leave the patterns out.')
    for family in FAMILIES if args.write else ():  # before the minutes that it takes
        insert(args.write.read_text(), family, '')
    logging.disable(logging.WARNING)
    tables, known = {family: [HEADER, RULE] for family in FAMILIES}, {}
    for name in track(configs(args.patterns), 'counting'):
        cfg = read(name)
        key = repr((cfg.default_scope, input_size(cfg), without_checkpoints(cfg.model.to_dict())))
        if key not in known:  # the same model on a longer schedule
            known[key] = cost(name)
        tables[name.split('/')[1]].append(row(name, known[key]))
        print(tables[name.split('/')[1]][-1], flush=True)
    for family, lines in tables.items() if args.write else ():
        write(args.write, family, '\n'.join(lines))


if __name__ == '__main__':
    run(main)
