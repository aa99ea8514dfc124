#!/usr/bin/env python3
"""Evaluate a checkpoint of any config of mmdet, mmseg or mmpretrain with their stock Runner.

With OREPAHook in the config (all configs here have it) the model is tested in deployed form, and the log says how far its
outputs are from the training form's; --no-reparameterize tests the training form.
"""

import argparse
import inspect
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from augmentation import mend_augmentation
from common import UsageError, add_common_options, build_runner, load_config, run
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from preflight import check_data, classes_of

from orepa_mm.engine.distributed import check_together, start_processes
from orepa_mm.files import check_writable, replacing
from orepa_mm.registry import class_of, scope_of, type_name

HOOKS_OF_FORM = ('OREPAHook', 'ReparameterizeHook')
MERGED = dict(  # how each toolbox merges the predictions of augmented pictures, where the config does not say
    mmdet=dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    mmseg=dict(type='SegTTAModel'),
    mmpretrain=dict(type='AverageClsScoreTTA'),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='training-form checkpoint')
    add_common_options(parser)
    parser.add_argument('--out', help='keep the predictions: a .pkl file (mmdet, mmpretrain) or a folder for label maps (mmseg)')
    parser.add_argument('--metrics', type=Path, metavar='JSON', help='write the metrics to this file')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures with the predictions painted in')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds each window of --show stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--no-check-data', action='store_true', help='do not check the dataset first')
    parser.add_argument(
        '--reparameterize',
        action=argparse.BooleanOptionalAction,
        help=f'test in deployed form, or not (default: as the config says: with {" or ".join(HOOKS_OF_FORM)} yes)',
    )
    return parser.parse_args()


def choose_form(cfg: Config, reparameterize: bool | None) -> None:
    hooks, defaults = cfg.get('custom_hooks') or [], cfg.get('default_hooks') or {}
    present = any(map(_is_ours, (*hooks, *defaults.values())))
    if reparameterize and not present:
        cfg.default_hooks = dict(defaults, orepa=dict(type='OREPAHook'))
    elif reparameterize is False:
        cfg.custom_hooks = [hook for hook in hooks if not _is_ours(hook)]
        cfg.default_hooks = {name: hook for name, hook in defaults.items() if not _is_ours(hook)}


def _is_ours(hook: dict | None) -> bool:
    return type_name((hook or {}).get('type')) in HOOKS_OF_FORM


def paint_predictions(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UsageError('--show and --show-dir need default_hooks.visualization in the config.')
    takes = inspect.signature(class_of(hook.type, HOOKS, scope_of(cfg))).parameters
    if args.show_dir:
        args.show_dir = str(Path(args.show_dir).resolve())  # mmdet would put a relative one below the work dir
    hook.update(show=args.show, wait_time=args.wait_time)
    hook['draw' if 'draw' in takes else 'enable'] = True
    if not args.show_dir:
        return
    folder = next((name for name in ('test_out_dir', 'out_dir') if name in takes), None)
    if folder:
        hook[folder] = args.show_dir
    else:
        cfg.visualizer.save_dir = args.show_dir


def augment(cfg: Config) -> None:
    """Put the toolbox's test-time augmentation around model and pipeline; flips where the config has none of its own."""
    scope = scope_of(cfg)
    if scope == 'mmdet' and (cfg.model.get('mask_head') or cfg.model.get('roi_head', {}).get('mask_head')):
        raise UsageError('--tta: mmdet has no test-time augmentation for instance masks; test without it.')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if scope not in MERGED and not {'tta_model', 'tta_pipeline'} <= cfg.keys():
        raise UsageError(f'--tta: for {scope} give tta_model and tta_pipeline in the config.')
    if 'tta_model' not in cfg:
        cfg.tta_model = MERGED[scope]
    if 'tta_pipeline' not in cfg:
        *transforms, pack = deepcopy(dataset.pipeline)
        if scope != 'mmpretrain':
            keys = pack.get('meta_keys') or ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
            pack.meta_keys = (*keys, *(key for key in ('flip', 'flip_direction') if key not in keys))
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        if scope == 'mmseg':
            flips.reverse()
        cfg.tta_pipeline = [*transforms, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def keep_predictions(cfg: Config, out: str) -> None:
    if scope_of(cfg) == 'mmseg':
        for evaluator in cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]:
            evaluator.update(output_dir=out, keep_results=True)
    elif not out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out {out}: the predictions of {scope_of(cfg)} go into a .pkl file.')


def add_dump(runner: Runner, scope: str, out: str) -> None:
    if scope == 'mmseg':  # its metric writes label maps
        return
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults as Dump
    else:
        from mmengine.evaluator import DumpResults as Dump
    runner.test_evaluator.metrics.append(Dump(out_file_path=out))


def as_json(value: Any) -> Any:
    """What of a metric JSON does not have: tensors and arrays as lists, single ones as numbers."""
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    choose_form(cfg, args.reparameterize)
    if args.show or args.show_dir:
        paint_predictions(cfg, args)
    if args.out:
        keep_predictions(cfg, args.out)
        check_writable(args.out, folder=scope_of(cfg) == 'mmseg')
    if args.metrics:
        check_writable(args.metrics)
    if args.show_dir:
        check_writable(args.show_dir, folder=True)
    start_processes(cfg)
    if not args.no_check_data:
        check_together(lambda: check_data(cfg, ('test',), others=classes_of(args.checkpoint)), once_a_node=True)
    if args.tta:
        augment(cfg)
        mend_augmentation(cfg)
    cfg.load_from = args.checkpoint
    runner = build_runner(cfg)
    if args.out:
        add_dump(runner, scope_of(cfg), args.out)
    metrics = runner.test()
    if args.metrics and is_main_process():
        with replacing(args.metrics) as partial:
            partial.write_text(json.dumps(metrics, indent=2, default=as_json) + '\n')


if __name__ == '__main__':
    run(main)
