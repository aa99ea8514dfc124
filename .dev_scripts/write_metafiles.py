#!/usr/bin/env python3
"""Write model-index.yml and the metafile of each config family from docs/configs.md and the figures the paper reports.

    python .dev_scripts/write_metafiles.py            # after .dev_scripts/list_configs.py --write docs/configs.md

No weights are listed, as none are published by this project; metrics are the paper's and say so in their names.
"""

import argparse
import re
import sys
from pathlib import Path

import yaml

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
from common import UsageError, run  # noqa: E402
from list_configs import FAMILIES, ROOT, configs, description, paper_figures, read  # noqa: E402
from mmengine.config import Config  # noqa: E402

from orepa_mm.files import replacing  # noqa: E402

PAPER = dict(Title='Online Convolutional Re-parameterization', URL='https://arxiv.org/abs/2204.00826')


def costs(page: str) -> dict[str, tuple[list[float], list[float]]]:
    """Config file -> millions of parameters and GFLOPs, in training form and re-parameterized, from docs/configs.md."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        name = re.search(r'configs/\S+\.py', cells[0])
        if name and len(cells) == 4:
            found[name[0]] = tuple([float(value) for value in cell.split('→')] for cell in cells[1:3])
    return found


def result(name: str, metric: float) -> dict:
    if 'in1k' in name:
        return dict(Task='Image Classification', Dataset='ImageNet-1k', Metrics={'Top 1 Accuracy (paper)': metric})
    if 'coco' in name:
        return dict(Task='Object Detection', Dataset='COCO', Metrics={'box AP (paper)': metric})
    return dict(Task='Semantic Segmentation', Dataset='Cityscapes', Metrics={'mIoU (paper)': metric})


def entry(path: str, family: str, cost: tuple[list[float], list[float]]) -> dict:
    """A model of a metafile."""
    cfg, name = read(path), Path(path).stem
    architecture, method, data, schedule = description(path)
    length, per_gpu = schedule.split(', ')
    number, unit = length.split()
    gpus, batch = (int(value) for value in per_gpu.split(' x '))
    (trained, deployed), (_, flops) = cost
    metadata = {
        'Training Data': data,
        'Architecture': architecture.split(', '),
        'Method': method,
        'Training Techniques': techniques(cfg),
        unit.capitalize(): int(number),
        'Batch Size': gpus * batch,
        'Parameters': round(deployed * 1e6),
        'Parameters (training form)': round(trained * 1e6),
        'FLOPs': round(flops * 1e9),
    }
    model = {'Name': name, 'In Collection': collection(family), 'Config': path, 'Metadata': metadata}
    figures = paper_figures().get(name)
    if figures:
        metadata['Training Memory (GB, paper)'] = figures[1]
        model['Results'] = [result(name, figures[0])]
    return model


def techniques(cfg: Config) -> list[str]:
    optimizer = cfg.optim_wrapper.optimizer
    names = ['SGD with Momentum' if optimizer.type == 'SGD' else optimizer.type, 'Weight Decay']
    names += ['Mixed Precision Training'] * (cfg.optim_wrapper.get('type') == 'AmpOptimWrapper')
    return names + ['EMA'] * any(hook['type'] == 'EMAHook' for hook in cfg.get('custom_hooks') or [])


def collection(family: str) -> str:
    return f'OREPA {FAMILIES[family]}'


def metafiles(page: str) -> dict[str, str]:
    """File -> content, of model-index.yml and all metafiles."""
    known, files = costs(page), {}
    for family in FAMILIES:
        paths = [path for path in configs([f'configs/{family}/*']) if 'mini' not in path]
        absent = [path for path in paths if path not in known]
        if absent:
            raise UsageError(f'docs/configs.md: lacks {absent[0]}; write it anew with .dev_scripts/list_configs.py.')
        content = dict(
            Collections=[dict(Name=collection(family), License='Apache License 2.0', Paper=PAPER)],
            Models=[entry(path, family, known[path]) for path in paths],
        )
        comment = '# Written by: python .dev_scripts/write_metafiles.py\n# Metrics are those the paper reports; no weights are published.\n'
        files[f'configs/{family}/metafile.yml'] = comment + yaml.safe_dump(content, sort_keys=False, width=140)
    files['model-index.yml'] = yaml.safe_dump(dict(Import=list(files)))
    return files


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    page = ROOT / 'docs' / 'configs.md'
    if not page.is_file():
        raise UsageError(f'{page}: no such file; write it with .dev_scripts/list_configs.py --write docs/configs.md.')
    for name, content in metafiles(page.read_text()).items():
        path = ROOT / name
        with replacing(path) as partial:
            partial.write_text(content)
        print(f'wrote {name}')


if __name__ == '__main__':
    run(main)
