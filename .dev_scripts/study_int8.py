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
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ('tools', 'tools/deploy', '.dev_scripts')]
from common import UsageError, load_config, run  # noqa: E402
from doc_tables import write  # noqa: E402
from quantize_onnx import prepared  # noqa: E402

from orepa_mm.deploy.evaluation import evaluate  # noqa: E402
from orepa_mm.deploy.export import export  # noqa: E402
from orepa_mm.deploy.pictures import pictures_in  # noqa: E402
from orepa_mm.deploy.quantize import OnnxNetwork, change, quantize  # noqa: E402
from orepa_mm.files import check_writable, replacing  # noqa: E402

CONFIG = 'configs/imagenet/orepa-resnet18-w16_imagenet-mini.py'
# A quarter of the width of A0.
REPVGG = "_delete_=True, type='OREPARepVGG', arch='A0', base_channels=16, method={method!r}, out_indices=(3,)"
DECAYS = (1e-4, 2e-2)  # the recipe's, and one that 300 iterations feel
SPLITS = (('train', 100), ('val', 200))  # pictures to calibrate with and to compare on


@dataclass(frozen=True)
class Network:
    """One trained network: its title, the backbone's settings, the head's, and which decays it is trained with."""

    name: str
    title: str
    backbone: str
    channels: int
    kernel_decay: tuple[bool, ...]


NETWORKS = (
    Network('plain', 'ResNet-18', "method='none', init=None, stem_channels=16", 128, (False,)),
    Network('orepa', 'OREPA ResNet-18', "init='published', stem_channels=16", 128, (False, True)),
    Network('repvgg', 'RepVGG-A0', REPVGG.format(method='RepVGG'), 320, (False, True)),
    Network('orepa-repvgg', 'OREPA-RepVGG-A0', REPVGG.format(method='OREPA'), 320, (False, True)),
)


@dataclass(frozen=True)
class Run:
    """One training."""

    network: Network
    weight_decay: float
    kernel_decay: bool
    seed: int

    @property
    def name(self) -> str:
        return f'{self.network.name}_{self.weight_decay:g}_{"kernel" if self.kernel_decay else "stock"}_seed{self.seed}'

    @property
    def config(self) -> str:
        return '\n'.join(
            (
                f'_base_ = {str(ROOT / CONFIG)!r}',
                f'model = dict(backbone=dict({self.network.backbone}), head=dict(in_channels={self.network.channels}))',
                f'optim_wrapper = dict(optimizer=dict(weight_decay={self.weight_decay}), '
                f'paramwise_cfg=dict(custom_l2={self.kernel_decay}))',
                *(["custom_hooks = [dict(type='CheckHook')]"] if self.network.name == 'plain' else []),  # nothing to re-parameterize
                f'randomness = dict(seed={self.seed})',
                '',
            )
        )


def train(each: Run, out: Path) -> tuple[Path, Path | None]:
    """Train unless that was done; the config and the checkpoint, None where the loss did not stay finite."""
    work_dir = out.resolve() / each.name
    config = work_dir.parent / f'{each.name}.py'  # in work_dir mmengine would write the whole config over it
    checkpoint, log = work_dir / 'last.pth', work_dir / 'output.log'
    work_dir.mkdir(parents=True, exist_ok=True)
    same = config.is_file() and config.read_text() == each.config
    if same and log.is_file() and 'loss: nan' in log.read_text():
        return config, None
    if not (same and checkpoint.is_file()):
        config.write_text(each.config)
        start = time.monotonic()
        with log.open('w') as output:
            command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(work_dir)]
            status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT).returncode
        if status and 'loss: nan' in log.read_text():
            print(f'{each.name}: diverged (output: {log})', flush=True)
            return config, None
        if status:
            raise UsageError(f'{each.name}: the training failed (output: {log}).')
        print(f'trained {each.name} in {time.monotonic() - start:.0f} s', flush=True)
    return config, checkpoint


def runs(seeds: list[int]) -> list[Run]:
    return [
        Run(network, decay, kernel_decay, seed)
        for seed in seeds
        for decay in DECAYS
        for network in NETWORKS
        for kernel_decay in network.kernel_decay
    ]


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


def kernels(graph: Path) -> Iterator[np.ndarray]:
    """The kernels [O, I/g, k, k] of an exported network's convolutions, norms folded."""
    import onnx

    model = onnx.load(graph)
    values = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == 'Conv':
            yield onnx.numpy_helper.to_array(values[node.input[1]])


def peak(graph: Path) -> float:
    """A channel's largest weight to the root mean square of its weights, medians over channels and layers."""
    rows = [kernel.reshape(len(kernel), -1) for kernel in kernels(graph)]
    return float(np.median([np.median(np.abs(each).max(1) / np.sqrt((each**2).mean(1)).clip(1e-12)) for each in rows]))


def signal_to_noise(graph: Path, per_channel: bool) -> float:
    """Of the kernels in int8, in dB, median over the layers."""
    return float(np.median([error_db(kernel, per_channel) for kernel in kernels(graph)]))


def rounded(kernel: np.ndarray, per_channel: bool) -> np.ndarray:
    """A kernel [O, ...] in int8 and back."""
    rows = kernel.reshape(len(kernel), -1).astype(np.float64)
    step = np.abs(rows).max(1, keepdims=True) / 127
    step = np.maximum(step if per_channel else step.max(), 1e-30)
    return (np.round(rows / step) * step).reshape(kernel.shape)


def error_db(kernel: np.ndarray, per_channel: bool) -> float:
    """Signal to noise, in dB, of a kernel in int8."""
    noise = ((kernel - rounded(kernel, per_channel)) ** 2).sum()
    return float(10 * np.log10((kernel.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def draw(graphs: dict[str, Path], path: Path) -> None:
    """Largest weight and root mean square of all channels of all layers, one panel a network."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 6.5), sharey=True, layout='constrained')
    for place in axes.flat:
        place.axis('off')
    for title, graph in graphs.items():  # a column for each network, above with decay of the parameters
        name, _, decayed = title.partition(', decay of ')
        place = axes[int(decayed != 'parameters'), [network.title for network in NETWORKS].index(name)]
        place.axis('on')
        for layer, kernel in enumerate(kernels(graph)):
            rows = kernel.reshape(len(kernel), -1)
            for colour, shift, values in (('C0', -0.2, np.abs(rows).max(1)), ('C1', 0.2, np.sqrt((rows**2).mean(1)))):
                values = values / np.abs(rows).max()
                place.plot([layer + shift] * len(values), values, '.', color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
                place.plot([layer + shift - 0.2, layer + shift + 0.2], [np.median(values)] * 2, color=colour, linewidth=2.5)
        tensor, channel = (signal_to_noise(graph, each) for each in (False, True))
        place.set_title(f'{title}\nint8: {tensor:.0f} dB with a scale a tensor, {channel:.0f} dB a channel', fontsize=9)
        place.axhline(1 / 127, color='grey', linestyle=':', linewidth=1)
        place.set(yscale='log', ylim=(1e-3, 1.3), xlabel='convolution')
        place.grid(alpha=0.2)
    for place in axes.flat:
        place.tick_params(labelleft=True)
    axes[0, 0].set_ylabel("relative to the layer's largest weight")
    legend = "blue dot: an output channel's largest weight\norange dot: root mean square of its weights\nlines: the median channel\n"
    legend += 'dotted: a step of int8 with a scale a tensor\n\ndB: signal to noise of the kernels, median layer\n\n'
    legend += 'from the top to orange: lost with a scale a tensor\nfrom blue to orange: lost with a scale a channel'
    axes[1, 0].text(-0.1, 0.95, legend, va='top', fontsize=10, transform=axes[1, 0].transAxes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=90, format='png')
    plt.close(figure)


def cell(values: list[float], form: str) -> str:
    """The mean, and the range where there are several values."""
    text = format(statistics.mean(values), form)
    return text if len(values) == 1 else f'{text} ({min(values):{form}} to {max(values):{form}})'


def table(groups: dict[tuple[str, str, str], list[tuple[dict, Path]]]) -> str:
    """The results as Markdown; a row for each network and decay, means and ranges over the seeds in it."""
    head = ['network', 'weight decay', 'of', 'top-1, float', 'int8, a tensor', 'int8, a channel']
    head += ['change, a tensor', 'change, a channel', 'peak']
    rows = [head, ['---'] * len(head)]
    titles = [network.title for network in NETWORKS]
    for names, found in sorted(groups.items(), key=lambda group: titles.index(group[0][0])):
        results = [result for result, _ in found]
        if not found:
            rows.append([*names, 'diverged', *[''] * (len(head) - len(names) - 1)])
            continue
        rows.append(
            [
                *names,
                *(cell([result[form]['metric'] for result in results], '.1f') for form in ('float', 'tensor', 'channel')),
                *(cell([result[form]['typical'] for result in results], '.3f') for form in ('tensor', 'channel')),
                f'{statistics.mean(peak(graph) for _, graph in found):.1f}',
            ]
        )
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
    check_writable(args.out, folder=True)
    groups, graphs = {}, {}
    for each in runs(args.seeds):
        config, checkpoint = train(each, args.out)
        decayed = 'deployed kernels' if each.kernel_decay else 'parameters'
        group = groups.setdefault((each.network.title, f'{each.weight_decay:g}', decayed), [])
        if checkpoint is None:
            continue
        found = measured(config, checkpoint, checkpoint.parent, ROOT / 'data' / 'imagenet-mini', 'accuracy/top1')
        graph = checkpoint.parent / 'float.onnx'
        group.append((found, graph))
        if each.seed == args.seeds[0] and each.weight_decay == max(DECAYS):
            graphs[f'{each.network.title}, decay of {decayed}'] = graph
    page = ROOT / 'docs' / 'int8.md'
    write(page, 'classifiers', table(groups))
    draw(graphs, ROOT / 'docs' / 'images' / 'kernel_ranges.png')
    if args.segmentor:
        config, checkpoint = args.segmentor
        work_dir = args.out / 'segmentor'
        work_dir.mkdir(parents=True, exist_ok=True)
        found = measured(config, checkpoint, work_dir, ROOT / 'data' / 'cityscapes-mini' / 'leftImg8bit', 'mIoU')
        write(page, 'segmentor', segmentor_table(found))


if __name__ == '__main__':
    run(main)
