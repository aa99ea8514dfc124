#!/usr/bin/env python3
"""Do re-parameterized networks need a weight decay of their own before they are quantized? Writes tables and picture of docs/int8.md.

    python demo/make_mini_data.py && python demo/pipeline.py
    python .dev_scripts/study_int8.py --seeds 0 1 2 \\
        --segmentor work_dirs/pipeline/segmentor.py work_dirs/pipeline/work/segmentor/last.pth

Trains small classifiers on the drawn set one after the other, exports and quantizes each, calibrated with training pictures, and tests it
on the 200 test pictures. Runs and results that are complete are not repeated.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ('tools', 'tools/deploy', '.dev_scripts/studies')]
from common import UsageError, load_config, run  # noqa: E402
from doc_tables import write  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from mmengine.config import Config  # noqa: E402
from quantize_onnx import prepared  # noqa: E402
from runs import Runs, run_of  # noqa: E402

from orepa_mm.deploy.evaluation import evaluate  # noqa: E402
from orepa_mm.deploy.export import export  # noqa: E402
from orepa_mm.deploy.pictures import pictures_in  # noqa: E402
from orepa_mm.deploy.quantize import OnnxNetwork, change, quantize  # noqa: E402
from orepa_mm.files import replacing  # noqa: E402

CONFIG = ROOT / 'configs/imagenet/orepa-resnet18-w16_imagenet-mini.py'
PAGE = ROOT / 'docs' / 'int8.md'
# A quarter of the width of A0.
REPVGG = dict(_delete_=True, type='OREPARepVGG', arch='A0', base_channels=16, out_indices=(3,))
NETWORKS = {  # by their titles; a plain one has nothing to re-parameterize
    'ResNet-18': {
        'model.backbone.method': 'none',
        'model.backbone.init': None,
        'model.backbone.stem_channels': 16,
        'custom_hooks': [dict(type='CheckHook')],
    },
    'OREPA ResNet-18': {'model.backbone.init': 'published', 'model.backbone.stem_channels': 16},
    'RepVGG-A0': {'model.backbone': dict(REPVGG, method='RepVGG'), 'model.head.in_channels': 320},
    'OREPA-RepVGG-A0': {'model.backbone': dict(REPVGG, method='OREPA'), 'model.head.in_channels': 320},
}
DECAYS = (1e-4, 2e-2)  # the recipe's, and one that 300 iterations feel
DECAYED = {'parameters': False, 'deployed kernels': True}
SPLITS = (('train', 100), ('val', 200))  # pictures to calibrate with and to compare on
HEADER = ('network', 'weight decay', 'of', 'top-1, float', 'int8, a tensor', 'int8, a channel', 'change, a tensor', 'change, a channel')


def trainings(seeds: list[int]) -> dict[tuple[str, float, str, int], object]:
    """The runs, by title, weight decay, of what, and seed."""
    found = {}
    for seed in seeds:
        for decay in DECAYS:
            for title, options in NETWORKS.items():
                for of, custom_l2 in list(DECAYED.items())[: 1 if title == 'ResNet-18' else 2]:
                    own = {
                        'optim_wrapper.optimizer.weight_decay': decay,
                        'optim_wrapper.paramwise_cfg.custom_l2': custom_l2,
                        'randomness.seed': seed,
                    }
                    name = f'{title}_{decay:g}_{of}_seed{seed}'.replace(' ', '-')
                    found[title, decay, of, seed] = run_of(Config.fromfile(CONFIG), options | own, name, test_on='test', phase='pretrain')
    return found


def measured(config: Path, checkpoint: Path, work_dir: Path, data: Path, metric: str) -> dict:
    """Metric of the float network and the two quantized ones, and the change of their outputs on the test pictures.

    Args:
        config: Of a classifier or segmentor with a test set.
        checkpoint: Of it.
        work_dir: Where ``float.onnx`` and ``result.json`` go.
        data: The dataset, with pictures for calibration below ``train`` and for comparison below ``val``.
        metric: Which to keep.
    """
    result, graph = work_dir / 'result.json', work_dir / 'float.onnx'
    if result.is_file() and result.stat().st_mtime > checkpoint.stat().st_mtime:
        return json.loads(result.read_text())
    args = argparse.Namespace(config=str(config), cfg_options=None, launcher='none', local_rank=0, work_dir=str(work_dir))
    cfg = load_config(args)
    with replacing(graph) as partial:
        next(export(cfg, checkpoint, partial, dynamic=True))  # compared with the training form at one size
    network = OnnxNetwork(graph)
    train, val = ([prepared(network, path) for path in pictures_in(data / split, count)] for split, count in SPLITS)
    found = dict(float=dict(metric=evaluate(cfg, network)[metric]))
    for name, per_channel in (('tensor', False), ('channel', True)):
        quantized = OnnxNetwork(quantize(graph, train, per_channel, full_range=True))
        found[name] = dict(metric=evaluate(cfg, quantized)[metric], **asdict(change(network, quantized, val)))
    with replacing(result) as partial:
        partial.write_text(json.dumps(found, indent=2) + '\n')
    return found


def kernels(graph: Path) -> list[np.ndarray]:
    """The kernels of an exported network's convolutions, norms folded, each as rows [O, I/g * k * k]."""
    import onnx

    model = onnx.load(graph)
    values = {entry.name: entry for entry in model.graph.initializer}
    found = [onnx.numpy_helper.to_array(values[node.input[1]]) for node in model.graph.node if node.op_type == 'Conv']
    return [kernel.reshape(len(kernel), -1).astype(np.float64) for kernel in found]


def peak(graph: Path) -> float:
    """A channel's largest weight to the root mean square of its weights, medians over channels and layers."""
    return float(np.median([np.median(np.abs(rows).max(1) / np.sqrt((rows**2).mean(1)).clip(1e-12)) for rows in kernels(graph)]))


def signal_to_noise(rows: np.ndarray, per_channel: bool) -> float:
    """Of a kernel in int8, in dB."""
    step = np.abs(rows).max(1, keepdims=True) / 127
    step = np.maximum(step if per_channel else step.max(), 1e-30)
    noise = ((rows - np.round(rows / step) * step) ** 2).sum()
    return float(10 * np.log10((rows**2).sum() / max(noise, 1e-30)))


def draw(graphs: dict[tuple[str, str], Path], path: Path) -> None:
    """Largest weight and root mean square of all channels of all layers: a column a network, above with decay of the parameters."""
    figure = Figure((15, 6.5), layout='constrained')
    panels = figure.subplots(2, len(NETWORKS), sharey=True)
    for (title, of), graph in graphs.items():
        place, found = panels[list(DECAYED).index(of), list(NETWORKS).index(title)], kernels(graph)
        for layer, rows in enumerate(found):
            for colour, shift, values in (('C0', -0.2, np.abs(rows).max(1)), ('C1', 0.2, np.sqrt((rows**2).mean(1)))):
                values = values / np.abs(rows).max()
                place.plot([layer + shift] * len(values), values, '.', color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
                place.plot([layer + shift - 0.2, layer + shift + 0.2], [np.median(values)] * 2, color=colour, linewidth=2.5)
        tensor, channel = (np.median([signal_to_noise(rows, each) for rows in found]) for each in (False, True))
        place.set_title(f'{title}, decay of {of}\nint8: {tensor:.0f} dB with a scale a tensor, {channel:.0f} dB a channel', fontsize=9)
        place.axhline(1 / 127, color='grey', linestyle=':', linewidth=1)
        place.set(yscale='log', ylim=(1e-3, 1.3), xlabel='convolution')
        place.tick_params(labelleft=True)
        place.grid(alpha=0.2)
    for place in panels.flat:
        if not place.lines:
            place.axis('off')
    panels[0, 0].set_ylabel("relative to the layer's largest weight")
    legend = "blue dot: an output channel's largest weight\norange dot: root mean square of its weights\nlines: the median channel\n"
    legend += 'dotted: a step of int8 with a scale a tensor\n\ndB: signal to noise of the kernels, median layer\n\n'
    legend += 'from the top to orange: lost with a scale a tensor\nfrom blue to orange: lost with a scale a channel'
    panels[1, 0].text(-0.1, 0.95, legend, va='top', fontsize=10, transform=panels[1, 0].transAxes)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=90, format='png')


def cell(values: list[float], form: str) -> str:
    """The mean, and the range where there are several values."""
    text = format(statistics.mean(values), form)
    return text if len(values) == 1 else f'{text} ({min(values):{form}} to {max(values):{form}})'


def table(groups: dict[tuple[str, float, str], list[tuple[dict, Path]]]) -> str:
    """A row for each network and decay, means and ranges over the seeds that came through in it."""
    rows = [[*HEADER, 'peak'], ['---'] * (len(HEADER) + 1)]
    for (title, decay, of), found in sorted(groups.items(), key=lambda group: list(NETWORKS).index(group[0][0])):
        rows.append([title, f'{decay:g}', of, 'diverged', *[''] * 5])
        if found:
            results = [result for result, _ in found]
            rows[-1][3:6] = [cell([result[form]['metric'] for result in results], '.1f') for form in ('float', 'tensor', 'channel')]
            rows[-1][6:8] = [cell([result[form]['typical'] for result in results], '.3f') for form in ('tensor', 'channel')]
            rows[-1][8] = f'{statistics.mean(peak(graph) for _, graph in found):.1f}'
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def segmentor_table(found: dict) -> str:
    rows = ['| PSPNet, OREPA ResNet-18 | mIoU, % | logits, typical change | largest | same labels, % |', '|---|---|---|---|---|']
    rows.append(f'| float | {found["float"]["metric"]:.2f} | | | |')
    for name in ('tensor', 'channel'):
        each = found[name]
        values = f'{each["metric"]:.2f} | {each["typical"]:.3f} | {each["largest"]:.3f} | {100 * each["same"]:.2f}'
        rows.append(f'| int8, a scale a {name} | {values} |')
    return '\n'.join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='each network is trained with each seed (default: 0)')
    parser.add_argument('--segmentor', nargs=2, type=Path, metavar=('CONFIG', 'CHECKPOINT'), help='a trained segmentor to quantize as well')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/int8'), help='folder of the runs (default: %(default)s)')
    args = parser.parse_args()
    trained, groups, graphs = trainings(args.seeds), {}, {}
    with Runs(args.out.resolve(), 1, len(trained)) as runs:
        records = runs.carry_out(list(trained.values()))
    for (*names, seed), record, each in zip(trained, records, trained.values(), strict=True):
        group = groups.setdefault(tuple(names), [])
        if 'error' in record:
            if 'the loss is not finite' not in record['error']:
                raise UsageError(f'{each.name}: {record["error"]}')
            continue
        work_dir = runs.work_dir(each)
        checkpoint = work_dir / Path((work_dir / 'last_checkpoint').read_text().strip()).name
        found = measured(runs.config_path(each), checkpoint, work_dir, ROOT / 'data' / 'imagenet-mini', 'accuracy/top1')
        group.append((found, work_dir / 'float.onnx'))
        if seed == args.seeds[0] and names[1] == max(DECAYS):
            graphs[names[0], names[2]] = work_dir / 'float.onnx'
    write(PAGE, 'classifiers', table(groups))
    draw(graphs, PAGE.parent / 'images' / 'kernel_ranges.png')
    if args.segmentor:
        config, checkpoint = args.segmentor
        work_dir = args.out / 'segmentor'
        work_dir.mkdir(parents=True, exist_ok=True)
        found = measured(config, checkpoint, work_dir, ROOT / 'data' / 'cityscapes-mini' / 'leftImg8bit', 'mIoU')
        write(PAGE, 'segmentor', segmentor_table(found))


if __name__ == '__main__':
    run(main)
