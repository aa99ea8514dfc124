#!/usr/bin/env python3
"""Train any config of mmdet, mmseg or mmpretrain with their stock Runner.

The config's default_scope decides the toolbox. Before the run starts, the datasets (but with --no-check-data) and the
checkpoints it will load are checked.
"""

import argparse

from common import UsageError, add_common_options, build_runner, keep_freed_memory, load_config, run
from mmengine.config import Config
from mmengine.device import get_device
from preflight import check_data

from orepa_mm.engine.distributed import check_together, start_processes
from orepa_mm.registry import type_name


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    add_common_options(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint, or without a value from the newest one in the work dir',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument('--no-check-data', action='store_true', help='do not check the datasets first')
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.amp:
        if get_device() == 'cpu':
            raise UsageError('--amp: mixed-precision training needs a GPU, and none was found.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    elif type_name(cfg.optim_wrapper.get('type')) == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise UsageError(
            f'{args.config}: trains in mixed precision, which needs a GPU, and none was found; '
            'for full precision add --cfg-options optim_wrapper.type=OptimWrapper.'
        )
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UsageError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: the batch size lr is set for.')
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        cfg.resume, cfg.load_from = True, None
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    apply_options(cfg, args)
    if get_device() == 'cpu':
        keep_freed_memory()
    start_processes(cfg)
    if not args.no_check_data:
        check_together(lambda: check_data(cfg, ('train', 'val')), once_a_node=True)
    build_runner(cfg).train()


if __name__ == '__main__':
    run(main)
