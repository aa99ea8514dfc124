#!/usr/bin/env python3
"""Compute what the processes of a distributed training send each other in a step.

python .dev_scripts/count_communication.py                        # a table in the terminal
python .dev_scripts/count_communication.py --write docs/scaling.md
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
import doc_tables  # noqa: E402
from common import run  # noqa: E402
from list_configs import network_name, read  # noqa: E402
from mmengine.config import Config  # noqa: E402
from progress import track  # noqa: E402

from orepa_mm.deploy.loading import build_model  # noqa: E402

CONFIGS = (
    'imagenet/{}-resnet18_4xb64-120e_in1k',
    'imagenet/{}-resnet50_4xb64-120e_in1k',
    'coco/mask-rcnn_{}-r50_fpn_1x_coco',
)
METHODS = {  # the config's method, and the branches of its layers where they are not the method's own
    'none': ('none', None),
    'OREPA': ('orepa', None),
    'OREPA, light': ('orepa', 'light'),
}
NETWORKS = {'10 Gbit/s': 10e9 / 8, '100 Gbit/s': 100e9 / 8}  # bytes a second
HEADER = ('network', 'method', 'trained parameters, M', 'gradients, MB', *(f'at {name}, ms' for name in NETWORKS))


def trained_parameters(cfg: Config) -> int:
    """How many parameters of a config's model have gradients, which is what the processes average in a step."""
    return sum(p.numel() for p in build_model(cfg).parameters() if p.requires_grad)


def row(config: str, method: str) -> tuple[str, ...]:
    """A line of the table: 4 bytes a gradient, and how long they take each network card of a ring.

    In a ring of n machines each card sends every byte 2 (n - 1) / n times; the figures are its limit, 2.
    """
    name, branches = METHODS[method]
    cfg = read(f'configs/{config.format(name)}.py')
    network = network_name(cfg)
    if branches:
        cfg.merge_from_dict({'model.backbone.branches': branches})
    count = trained_parameters(cfg)
    times = [f'{2 * 4 * count / rate * 1e3:.0f}' for rate in NETWORKS.values()]
    return network, method, f'{count / 1e6:.2f}', f'{4 * count / 1e6:.0f}', *times


def rows() -> list[tuple[str, str]]:
    return [(config, method) for config in CONFIGS for method in METHODS]


def markdown(lines_of_cells: list[tuple[str, ...]]) -> str:
    lines = [f'| {" | ".join(cells)} |' for cells in (HEADER, *lines_of_cells)]
    return '\n'.join([lines[0], '|---|---|' + '---:|' * (len(HEADER) - 2), *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', type=Path, metavar='MD', help='put the table between the markers of this file')
    args = parser.parse_args()
    table = markdown([row(*each) for each in track(rows(), 'counting')])
    print(table)
    if args.write:
        doc_tables.write(args.write, 'communication', table)


if __name__ == '__main__':
    run(main)
