#!/usr/bin/env python3
"""Train any config of mmdet, mmseg or mmpretrain with their stock Runner.

The config's default_scope decides the toolbox. Before the run starts, the datasets and the checkpoints it will load are checked.
"""

import argparse

from common import UsageError, add_common_options, build_runner, keep_freed_memory, load_config, run
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from preflight import check_data

from orepa_mm.checkpoints.checking import check_pretrained, check_state_dict
from orepa_mm.checkpoints.reading import is_local, read_checkpoint, state_dict_of
from orepa_mm.reparam.outputs import unwrap


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
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.amp:
        if get_device() == 'cpu':
            raise UsageError('--amp: mixed-precision training needs a GPU, and none was found.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    elif cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
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


def check_checkpoints(runner: Runner, cfg: Config) -> None:
    """Read and compare whatever the run is going to load, while nothing is lost yet."""
    model = unwrap(runner.model)
    if cfg.get('load_from') and is_local(cfg.load_from):
        state = state_dict_of(read_checkpoint(cfg.load_from))
        check_state_dict(model, state, cfg.load_from, partial=not cfg.get('resume'))
    elif not cfg.get('resume'):
        check_pretrained(model)


def check_multipliers(runner: Runner, cfg: Config) -> None:
    """A learning-rate multiplier on frozen parameters, or on none, does nothing."""
    keys = (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    for key, settings in keys.items():
        if 'lr_mult' not in settings:
            continue
        parameters = [p for name, p in runner.model.named_parameters() if key in name]
        if not parameters:
            runner.logger.warning(f'optim_wrapper.paramwise_cfg.custom_keys: no parameter name contains "{key}", so it does nothing.')
        elif not any(p.requires_grad for p in parameters):
            runner.logger.warning(
                f'All parameters of "{key}" are frozen, so its lr_mult does nothing: set frozen_stages=-1 of the backbone.'
            )


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    apply_options(cfg, args)
    if get_device() == 'cpu':
        keep_freed_memory()
    check_data(cfg, ('train', 'val'))
    runner = build_runner(cfg)
    check_checkpoints(runner, cfg)
    check_multipliers(runner, cfg)
    runner.train()


if __name__ == '__main__':
    run(main)
