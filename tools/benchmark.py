#!/usr/bin/env python3
"""Time training steps and forward passes of networks with and without OREPA, side by side in one process.

The networks take turns, so a machine that slows down slows all; what counts is the ratio to the plain network, taken round by round.
Without --arch the standard rows are measured. On a CPU they are ResNet-18 and ResNet-50 at common batch and picture sizes. On a GPU they
are training steps of ResNet-50, Mask R-CNN and PSPNet at their recipes' sizes, in half precision and channels_last, and of ResNet-50
compiled. On 2 idle CPU cores this takes 8 minutes. Results go into benchmarks/ as JSON, as tables and as a plot::

    python tools/benchmark.py
    python tools/benchmark.py --arch resnet50 --batch 64 --size 224 --device cuda --dtype bfloat16 --channels-last
    python tools/benchmark.py --arch mask-rcnn --batch 2 --size 800 1333
"""

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path

import torch
from common import UsageError, keep_freed_memory, run
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import orepa_mm
from orepa_mm.deploy.batches import batch_of
from orepa_mm.files import check_writable, replacing
from orepa_mm.layers import METHODS as LAYERS
from orepa_mm.layers.kernels import OREPAKernel
from orepa_mm.layers.squeeze_graph import SqueezeGraph, can_capture
from orepa_mm.optim import attached_to
from orepa_mm.optim.updates import MatrixUpdate

PLAIN_FORMULA = 'OREPA, plain formula'  # as the published code computes it
LIGHT = 'OREPA, light'
BESIDE, LIGHT_BESIDE, FIXED = 'OREPA, beside', 'OREPA, light, beside', 'OREPA, light, fixed scales'
ATTACHED = {  # branches beside the optimizer of the plain network
    BESIDE: dict(),
    LIGHT_BESIDE: dict(branches='light'),
    FIXED: dict(branches='light', scales='fixed'),
}
ONE_BY_ONE = 'OREPA, no graph'  # on a GPU the others squeeze by a CUDA graph, as SqueezeGraphHook does
OF_OREPA = ('OREPA', ONE_BY_ONE, PLAIN_FORMULA, BESIDE, LIGHT, LIGHT_BESIDE, FIXED)
METHODS = ('none', *(name for name in LAYERS if name != 'OREPA'), *OF_OREPA)
DEFAULT = ('none', 'ACNet', 'DBB', 'OREPA', BESIDE, LIGHT, LIGHT_BESIDE, FIXED)
OF_REPVGG = ('none', *OF_OREPA)
COMPILED_METHODS = ('none', 'OREPA', BESIDE, LIGHT)  # compiling takes longer than measuring
FORMS = {  # backbones that are not called as their rows are
    PLAIN_FORMULA: dict(method='OREPA'),
    ONE_BY_ONE: dict(method='OREPA'),
    LIGHT: dict(method='OREPA', branches='light'),
}
RESNETS = {f'resnet{depth}': dict(type='OREPAResNet', depth=depth) for depth in (18, 34, 50, 101, 152)}
RESNETS['resnext50'] = dict(type='OREPAResNeXt', depth=50)
REPVGGS = {f'repvgg-{arch}': dict(type='OREPARepVGG', arch=arch.upper()) for arch in ('a0', 'a1', 'a2')}
MODELS = {  # scope, stock config, where the training crop is
    'mask-rcnn': ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'),
    'pspnet': ('mmseg', 'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    'deeplabv3plus': ('mmseg', 'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024'),
}
# Architecture, batch, size, what is measured.
STANDARD = [
    ('resnet18', 32, (224, 224), ('step',)),
    ('resnet50', 16, (224, 224), ('step',)),
    ('resnet18', 8, (64, 64), ('step', 'accumulation')),
    ('resnet18', 8, (224, 224), ('forward',)),
    ('resnet50', 2, (224, 224), ('forward',)),
]
GPU = [  # mmcv's RoIAlign knows no bfloat16
    ('resnet50', 64, (224, 224), 'bfloat16'),
    ('mask-rcnn', 2, (800, 1333), 'float16'),
    ('pspnet', 2, (512, 1024), 'bfloat16'),
]
ACCUMULATED = 4  # batches a step
TITLES = dict(step='training step', accumulation=f'training step of {ACCUMULATED} batches', forward='eval forward')
Run = Callable[[], object]


class Classifier(nn.Module):
    """A backbone with a linear head, as for ImageNet."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        from mmpretrain.registry import MODELS

        self.backbone = MODELS.build(dict(backbone))
        self.backbone.train(False)
        with torch.no_grad():
            channels = self.backbone(torch.zeros(1, 3, 64, 64))[-1].shape[1]
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def method_of(backbone: dict, method: str) -> dict:
    repvgg = backbone['type'] == 'OREPARepVGG'
    return dict(backbone, **FORMS.get(method, dict(method='RepVGG' if repvgg and method == 'none' else method)))


class Classification:
    """Builds classifiers and their losses on random pictures."""

    def __init__(self, arch: str, args: argparse.Namespace) -> None:
        self.backbone = (RESNETS | REPVGGS)[arch]
        self.x = torch.randn(args.batch, 3, *args.size, device=args.device)
        if args.channels_last:
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.target = torch.randint(1000, (args.batch,), device=args.device)

    def build(self, method: str) -> nn.Module:
        return Classifier(method_of(self.backbone, method))

    def loss(self, model: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(model(self.x), self.target)

    def forward(self, model: nn.Module) -> torch.Tensor:
        return model(self.x)


class Dense:
    """Builds a stock detector or segmentor of mmdet or mmseg with our backbone, and its losses on random pictures."""

    def __init__(self, arch: str, args: argparse.Namespace) -> None:
        self.scope, name = MODELS[arch]
        init_default_scope(self.scope)
        package = Path(import_module(self.scope).__file__).parent
        self.config = Config.fromfile(package / '.mim' / 'configs' / f'{name}.py').model
        self.config.pop('pretrained', None)
        if self.scope == 'mmdet':
            from mmdet.testing import demo_mm_inputs

            self.batch = demo_mm_inputs(args.batch, [(3, *args.size)] * args.batch, num_items=[5] * args.batch, with_mask=True)
        else:
            self.config.data_preprocessor.size = args.size
            self.batch = batch_of('mmseg', torch.randint(0, 255, (args.batch, 3, *args.size), dtype=torch.uint8))
            for sample in self.batch['data_samples']:
                sample.set_data(dict(gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, *args.size)))))

    def build(self, method: str) -> nn.Module:
        config = copy.deepcopy(self.config)
        config.backbone.update(method_of(dict(type='OREPAResNet'), method), init_cfg=None)
        if self.scope == 'mmdet':
            config.backbone.frozen_stages = -1
        return revert_sync_batchnorm(import_module(f'{self.scope}.registry').MODELS.build(config))

    def loss(self, model: nn.Module) -> torch.Tensor:
        data = model.data_preprocessor(self.batch, True)
        return model.parse_losses(model(**data, mode='loss'))[0]

    def forward(self, model: nn.Module):
        data = model.data_preprocessor(self.batch, False)
        return model(data['inputs'], data['data_samples'], mode='tensor')


def build(task, method: str, args: argparse.Namespace) -> nn.Module:
    model = task.build('none' if method in ATTACHED else method).to(args.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, OREPAKernel):
            module.closed_form = method != PLAIN_FORMULA
    return model


def on_gpu(args: argparse.Namespace) -> bool:
    return args.device.startswith('cuda')


def autocast(args: argparse.Namespace):
    enabled = args.dtype != 'float32'
    return torch.autocast(torch.device(args.device).type, dtype=getattr(torch, args.dtype) if enabled else None, enabled=enabled)


def build_optimizer(model: nn.Module, method: str) -> torch.optim.SGD:
    fused = dict(fused=True) if torch.__version__ >= '2.4' else {}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, **fused)
    if method in ATTACHED:
        orepa_mm.attach_branches(model, optimizer, **ATTACHED[method])
    return optimizer


def training_step(
    task, model: nn.Module, args: argparse.Namespace, method: str = 'none', optimizer: torch.optim.Optimizer | None = None, batches: int = 1
) -> Run:
    model.train()
    if method not in (ONE_BY_ONE, PLAIN_FORMULA) and not args.compile and can_capture(model):
        SqueezeGraph(model)
    optimizer = optimizer or build_optimizer(model, method)

    def step() -> None:
        for _ in range(batches):
            with autocast(args):
                loss = task.loss(model)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # here as in mmengine: no gradients are alive in the forward pass

    return torch.compile(step) if args.compile else step  # all of it, as compile=True of a config does


def forward_pass(task, model: nn.Module, args: argparse.Namespace) -> Run:
    model.train(False)
    forward = torch.compile(task.forward) if args.compile else task.forward

    def run_forward():
        with torch.no_grad(), autocast(args):
            return forward(model)  # what is not returned, a compiler leaves out

    return run_forward


def take_turns(calls: dict[str, Run], repeats: int, args: argparse.Namespace, title: str) -> dict[str, list[float]]:
    """Seconds of every call, ``repeats`` times in turn after a warm-up; on a GPU its second round captures graphs."""
    times, warm_up = {name: [] for name in calls}, 2 if on_gpu(args) else 1
    for i in range(repeats + warm_up):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if on_gpu(args):
                torch.cuda.synchronize()
            if i >= warm_up:
                times[name].append(time.perf_counter() - start)
        if sys.stderr.isatty():  # not a bar: the thread that redraws one would be timed as well
            print(f'\r{title}: round {i + 1} of {repeats + warm_up}', end='', file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print('\r\033[K', end='', file=sys.stderr)
    return times


def _bytes(values) -> int:
    return sum(storage.nbytes() for storage in {t.untyped_storage()._cdata: t.untyped_storage() for t in values}.values())


def memory_of_step(task, method: str, args: argparse.Namespace) -> dict[str, int]:
    """Bytes of tensors at the worst moment of a training step, and of those among them that are kept between steps."""
    gc.collect()
    model = build(task, method, args)
    optimizer = build_optimizer(model, method)
    step = training_step(task, model, args, method, optimizer)
    for _ in range(2 if on_gpu(args) else 1):  # fills the optimizer state, and a CUDA graph
        step()
    momenta = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    kept = _bytes([*model.parameters(), *model.buffers(), *momenta, *_beside(optimizer)])
    if on_gpu(args):
        torch.cuda.reset_peak_memory_stats(args.device)
        step()
        return dict(memory=torch.cuda.max_memory_allocated(args.device), kept=kept)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
    level = peak = 0
    for event in sorted(events, key=lambda e: (e.start_ns if hasattr(e, 'start_ns') else e.start_us)()):
        level += event.nbytes()
        peak = max(peak, level)
    return dict(memory=kept + peak, kept=kept)


def _beside(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """What branches beside an optimizer keep."""
    attached = attached_to(optimizer)
    updates = attached.updates if attached else []
    kept = [tensor for update in updates for tensor in update.kernel.parameters() if not tensor.is_meta]
    return kept + [update.matrix for update in updates if isinstance(update, MatrixUpdate)]


def kernel_launches(call: Run) -> int:
    """CUDA kernels that one call starts."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if 'LaunchKernel' in event.key)


def measure(arch: str, what: tuple[str, ...], args: argparse.Namespace) -> list[dict]:
    """Rows of one architecture at one size."""
    task = (Dense if arch in MODELS else Classification)(arch, args)
    methods = [m for m in args.methods if m in OF_REPVGG or arch not in REPVGGS]
    rows = []
    for kind in ('step', 'accumulation', 'forward'):
        if kind in what:
            gc.collect()
            times, more = (forward_times if kind == 'forward' else step_times)(task, methods, kind, args, f'{arch}, {TITLES[kind]}')
            for method, values in times.items():
                # Round by round, so that both sides of a ratio saw the same machine.
                ratios = sorted(value / plain for value, plain in zip(values, times['none'], strict=True))
                row = dict(arch=arch, batch=args.batch, size=size_of(args), dtype=args.dtype, what=TITLES[kind], method=method)
                row |= dict(seconds=values, ratio=statistics.median(ratios))
                row |= dict(ratio_low=ratios[len(ratios) // 4], ratio_high=ratios[-1 - len(ratios) // 4])
                rows.append(row | more.get(method, {}))
    return rows


def forward_times(task, methods: list[str], kind: str, args: argparse.Namespace, title: str) -> tuple[dict, dict]:
    """In training form and re-parameterized; with branches beside the optimizer a network is the plain one."""
    models = {m if m == 'none' else f'{m}, training form': build(task, m, args) for m in methods if m not in ATTACHED}
    deployed = build(task, 'OREPA', args)
    deployed.train(False)
    models['OREPA, re-parameterized'] = orepa_mm.reparameterize(deployed)
    calls = {name: forward_pass(task, model, args) for name, model in models.items()}
    return take_turns(calls, 3 * args.repeats, args, title), {}


def step_times(task, methods: list[str], kind: str, args: argparse.Namespace, title: str) -> tuple[dict, dict]:
    """Of training steps, and what else is known of each: gradients, memory, kernels started, and the least that squeezing can take."""
    memory = {method: memory_of_step(task, method, args) for method in methods} if kind == 'step' and not args.no_memory else {}
    models = {method: build(task, method, args) for method in methods}
    more = {method: dict(gradients=4 * sum(p.numel() for p in model.parameters() if p.requires_grad)) for method, model in models.items()}
    for method, found in memory.items():
        more[method] |= found | dict(memory_ratio=found['memory'] / memory['none']['memory'])
    flops = {method: squeezing_flops(model) for method, model in models.items()}
    batches = ACCUMULATED if kind == 'accumulation' else 1
    steps = {method: training_step(task, model, args, method, batches=batches) for method, model in models.items()}
    times = take_turns(steps, args.repeats, args, title)
    if kind == 'step':
        rate = product_rate(args.device)
        for method, step in steps.items():
            same = {BESIDE: 'OREPA', LIGHT_BESIDE: LIGHT, FIXED: None}.get(method, method)
            if same in OF_OREPA and same in flops:
                more[method]['floor'] = floor(flops[same], statistics.median(times['none']), rate)
            if on_gpu(args):
                more[method]['kernel_launches'] = kernel_launches(step)
    return times, more


def size_of(args: argparse.Namespace) -> int | str:
    height, width = args.size
    return height if height == width else f'{height}x{width}'


def _time(row: dict) -> str:
    if row['method'] == 'none':
        return f'1 ({1e3 * statistics.median(row["seconds"]):.1f} ms)'
    return f'{row["ratio"]:.2f} ({row["ratio_low"]:.2f}-{row["ratio_high"]:.2f})'


CELLS: list[tuple[str, str, Callable[[dict], str]]] = [  # title, what a row must have, its cell
    ('time relative to plain (quartiles)', 'ratio', _time),
    ('if squeezing were its matrix products alone', 'floor', lambda row: f'{row["floor"]:.2f}'),
    ('peak memory relative to plain', 'memory', lambda row: f'{row["memory_ratio"]:.2f} ({row["memory"] / 1e6:.0f} MB)'),
    ('kept between steps, MB', 'kept', lambda row: f'{row["kept"] / 1e6:.0f}'),
    ('gradients a process sends, MB', 'gradients', lambda row: f'{row["gradients"] / 1e6:.0f}'),
    ('kernels launched in a step', 'kernel_launches', lambda row: f'{row["kernel_launches"]}'),
]


def _column(row: dict) -> str:
    dtype = f', {row["dtype"]}' if row['dtype'] != 'float32' else ''
    return f'{row["what"]}, {row["arch"]}, {row["batch"]} at {row["size"]}{dtype}'


def markdown(rows: list[dict]) -> str:
    """One table for each thing that was measured: methods down, networks across."""
    tables = []
    for title, key, cell in CELLS:
        cells = {(row['method'], _column(row)): cell(row) for row in rows if key in row}
        if not cells:
            continue
        methods, columns = (dict.fromkeys(names) for names in zip(*cells, strict=True))
        lines = [f'| {title} | {" | ".join(columns)} |', f'|---|{"---:|" * len(columns)}']
        lines += [f'| {method} | {" | ".join(cells.get((method, column), "") for column in columns)} |' for method in methods]
        tables.append('\n'.join(lines))
    return '\n\n'.join(tables)


def squeezing_flops(model: nn.Module) -> int:
    """Multiplications and additions of the products in one squeezing of all layers, forward."""
    kernels = [copy.deepcopy(module).to('meta') for module in model.modules() if isinstance(module, OREPAKernel)]
    with FlopCounterMode(display=False) as counter:
        for kernel in kernels:
            kernel.closed_form = False  # which sums the separable branch in passes
            kernel()
    return counter.get_total_flops()


def product_rate(device: str) -> float:
    """Multiplications and additions a second of a large matrix product in float32, the fastest arithmetic the device has for squeezing."""
    a, b = torch.randn(2048, 1024, device=device), torch.randn(1024, 1024, device=device)
    timer = Timer('a @ b', globals=dict(a=a, b=b), num_threads=torch.get_num_threads())  # waits for a GPU
    return 2 * len(a) * a.shape[1] * b.shape[1] / min(timer.blocked_autorange().times)


def floor(flops: int, plain_seconds: float, rate: float) -> float:
    """Ratio to the plain network's step if squeezing were nothing but matrix products at full speed: one forward, twice that backward."""
    return 1 + 3 * flops / rate / plain_seconds


def gpu_rows(args: argparse.Namespace, points: list[tuple[str, int, tuple[int, int], str]]) -> list[dict]:
    """Training steps as a GPU trains. The first network's compiled too: a detector or segmentor takes minutes (``--compile``)."""
    rows, methods = [], args.methods
    for compiled, some in ((False, points), (True, points[:1])):
        args.compile, args.methods = compiled, [method for method in methods if not compiled or method in COMPILED_METHODS]
        for arch, args.batch, args.size, args.dtype in some:
            found = [dict(row, what='training step, compiled' if compiled else row['what']) for row in measure(arch, ('step',), args)]
            print(markdown(found))
            rows += found
    return rows


def draw(rows: list[dict], path: Path, caption: str) -> None:
    rows = [row for row in rows if row['method'] != 'none']
    labels = [f'{row["what"]}, {row["arch"]}\nbatch {row["batch"]} at {row["size"]}\n{row["method"]}' for row in rows]
    figure = Figure(figsize=(8, 0.62 * len(rows) + 1.2), layout='constrained')
    axes = figure.subplots()
    ratios = [row['ratio'] for row in rows]
    spread = [[max(0, r['ratio'] - r['ratio_low']) for r in rows], [max(0, r['ratio_high'] - r['ratio']) for r in rows]]
    bars = axes.barh(labels, ratios, xerr=spread, color=['C0' if row['method'].startswith('OREPA') else 'C1' for row in rows])
    axes.bar_label(bars, [f'{ratio:.2f}' for ratio in ratios], padding=3)
    axes.axvline(1, color='gray', linewidth=0.8)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.tick_params(axis='y', labelsize=7)
    axes.set(xlabel='time / plain network', title=caption)
    axes.title.set_fontsize(8)
    save(figure, path)


def save(figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format='png')
    print(f'wrote {path}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', choices=(*RESNETS, *REPVGGS, *MODELS), help='one network instead of the standard rows')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, nargs='+', default=[224], help='height and width of the pictures, or one number for both')
    methods = f'"none" is always measured; default: {"; ".join(DEFAULT)}'
    parser.add_argument('--methods', nargs='+', choices=METHODS, help=methods)
    parser.add_argument('--what', nargs='+', choices=('step', 'accumulation', 'forward'), default=['step', 'forward'], help='with --arch')
    parser.add_argument('--repeats', type=int, help='rounds (default: 5, and 20 on a GPU)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), help='autocast dtype')
    parser.add_argument('--channels-last', action='store_true', help='memory format of pictures and kernels')
    parser.add_argument(
        '--compile', action='store_true', help='torch.compile for all networks, of the whole step as compile=True of a config'
    )
    parser.add_argument('--no-memory', action='store_true', help='time only')
    parser.add_argument('--out', type=Path, default=Path('benchmarks'), help='folder for the results')
    args = parser.parse_args()
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f'--device {args.device}: cannot be used here ({str(error).splitlines()[0]}).') from None
    if len(args.size) > 2:
        raise UsageError('--size takes a height and a width, or one number for both.')
    args.size = (args.size[0], args.size[-1])
    args.repeats = args.repeats if args.repeats is not None else 20 if on_gpu(args) else 5
    for option, least in (('batch', 2), ('size', 32), ('repeats', 1)):  # batch norms need more than one value to train on
        value = getattr(args, option)
        if (min(value) if option == 'size' else value) < least:
            raise UsageError(f'--{option} must be at least {least}.')
    others = [method for method in args.methods or () if method not in OF_REPVGG]
    if args.arch in REPVGGS and others:
        raise UsageError(f'--methods {others[0]}: RepVGG has blocks of its own; choose from {", ".join(OF_REPVGG)}.')
    args.methods = ['none', *(method for method in METHODS[1:] if method in (args.methods or DEFAULT))]
    return args


def main() -> None:
    args = parse_args()
    check_writable(args.out, folder=True)
    keep_freed_memory()
    torch.manual_seed(0)
    machine = (
        torch.cuda.get_device_name()
        if on_gpu(args)
        else f'{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores'
    )
    standard = not args.arch
    if standard and on_gpu(args):
        args.channels_last, args.compile = True, False
        args.methods += [ONE_BY_ONE] if args.methods == list(DEFAULT) else []
    precision = 'half' if standard and on_gpu(args) else args.dtype
    settings = [precision, *(['channels_last'] if args.channels_last else []), *(['compiled'] if args.compile else [])]
    caption = f'{machine}, {", ".join(settings)}, torch {torch.__version__.split("+")[0]}, {date.today()}'
    if args.arch:
        name = f'{args.arch}_b{args.batch}_s{size_of(args)}'
        rows = measure(args.arch, tuple(args.what), args)
    elif on_gpu(args):
        name, rows = 'standard', gpu_rows(args, GPU)
    else:
        name, rows = 'standard', []
        for arch, args.batch, args.size, what in STANDARD:
            rows += measure(arch, what, args)
    results, table = dict(caption=caption, rows=rows), f'{caption}.\n\n{markdown(rows)}'
    print(table)
    path = args.out / '_'.join([name, *settings, torch.device(args.device).type])
    for suffix, text in (('.json', json.dumps(results, indent=2)), ('.md', table)):
        with replacing(path.with_suffix(suffix)) as partial:
            partial.write_text(text + '\n')
        print(f'wrote {path}{suffix}')
    draw(rows, path.with_suffix('.png'), caption)


if __name__ == '__main__':
    run(main)
