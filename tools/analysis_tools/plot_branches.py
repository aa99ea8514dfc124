#!/usr/bin/env python3
"""Draw what the branches of a network do, before and after its training: their shares of the kernels, how alike they are, their scales.

    python tools/analysis_tools/plot_branches.py configs/imagenet/orepa-resnet18-w16_imagenet-mini.py \\
        work_dirs/orepa-resnet18-w16_imagenet-mini/last.pth branches.png

Before: the network as the config initialises it, pretrained weights included. Branches beside the optimizer are read from its state, of
a checkpoint that a run with BranchesHook wrote, with the config of that run. Prints the means of the shares and cosines.
"""

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
from common import UsageError, add_cfg_options, load_config, run  # noqa: E402
from diversity import Diversity, branch_diversity  # noqa: E402

from orepa_mm.checkpoints.beside import branches_beside, expand_as, training_form  # noqa: E402
from orepa_mm.checkpoints.checking import check_state_dict  # noqa: E402
from orepa_mm.checkpoints.reading import read_checkpoint  # noqa: E402
from orepa_mm.deploy.loading import build_model, load_model  # noqa: E402
from orepa_mm.files import check_writable, replacing  # noqa: E402


def draw(states: dict[str, Diversity], path: Path) -> None:
    """One row for each state: shares by layer, cosines, scales."""
    figure = Figure((16, 4.2 * len(states)), layout='constrained')
    axes = figure.subplots(len(states), 3, squeeze=False, width_ratios=(2.2, 1, 1))
    for row, (title, found) in zip(axes, states.items(), strict=True):
        names, count = found.names, len(found.names)
        image = row[0].imshow(found.shares.T, aspect='auto', cmap='viridis', vmin=0, vmax=1.2)
        row[0].set(title=f"{title}: norm of a branch relative to its kernel's", yticks=range(count), yticklabels=names)
        row[0].set(xlabel='kernel, from the stem on', xticks=range(0, len(found.shares), max(1, len(found.shares) // 20)))
        figure.colorbar(image, ax=row[0])
        matrix = found.cosines.nanmean(0).fill_diagonal_(1)
        image = row[1].imshow(matrix, cmap='RdBu_r', vmin=-1, vmax=1)
        row[1].set(title='mean cosine', xticks=range(count), yticks=range(count), yticklabels=names)
        row[1].set_xticklabels(names, rotation=45, ha='right')
        for i, j in (~torch.eye(count, dtype=torch.bool) & ~matrix.isnan()).nonzero().tolist():
            row[1].text(j, i, f'{matrix[i, j]:.2f}', ha='center', va='center', fontsize=8)
        figure.colorbar(image, ax=row[1])
        row[2].boxplot([values.tolist() for values in found.scales.values()], showfliers=False)
        row[2].set(title='magnitude of the scales', ylim=(0, None))
        row[2].set_xticks(range(1, count + 1), names, rotation=45, ha='right')
        row[2].grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=90, format='png')


def table(states: dict[str, Diversity]) -> str:
    """Means over the kernels, as text."""
    lines = ['branch      ' + ''.join(f'{title:>28}' for title in states), ' ' * 12 + '       share    |cos| others' * len(states)]
    for index, name in enumerate(next(iter(states.values())).names):
        cells = ''
        for found in states.values():
            others = found.cosines[:, index, [other for other in range(len(found.names)) if other != index]].abs()
            cells += f'{found.shares[:, index].nanmean():12.3f}{others.nanmean():16.3f}'
        lines.append(f'{name:<12}{cells}')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument(
        'checkpoint', type=Path, metavar='CHECKPOINT', help='of this config: in training form, or with branches beside the optimizer'
    )
    parser.add_argument('out', type=Path, metavar='OUT.png')
    add_cfg_options(parser)
    args = parser.parse_args()
    check_writable(args.out)
    cfg = load_config(args)
    checkpoint, before = read_checkpoint(args.checkpoint), build_model(cfg)
    if branches_beside(checkpoint):
        after, state = expand_as(build_model(cfg), checkpoint), training_form(checkpoint)
        check_state_dict(after, state, args.checkpoint, strict=True)
        after.load_state_dict(state, strict=False)
    else:
        after = load_model(cfg, args.checkpoint)
    torch.manual_seed((cfg.get('randomness') or {}).get('seed') or 0)
    before.init_weights()
    expand_as(before, checkpoint)
    states = {'before training': branch_diversity(before), 'after': branch_diversity(after)}
    if not states['after'].names:
        raise UsageError(f'{args.config}: the model has no branches.')
    print(table(states))
    draw(states, args.out)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    run(main)
