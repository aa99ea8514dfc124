#!/usr/bin/env python3
"""Write small networks with their weights, an input and its output, which later commits must load and reproduce.

    python .dev_scripts/write_regression.py tests/data/regression/2026-11-26    # 2 MB, once for a release

tests/test_regression.py reads every folder there is.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
from common import run  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402

from orepa_mm.files import save  # noqa: E402

SMALL = dict(type='OREPAResNet', depth=18, stem_channels=4, base_channels=2)
REPVGG = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.0625] * 4, group_layer_map=None, se_cfg=None)
CONFIGS = dict(
    resnet_none=dict(SMALL, method='none'),
    resnet_orepa=SMALL,
    resnet_orepa_light_plain_stem=dict(SMALL, branches='light', plain_stem=True),
    resnet_orepa_balanced=dict(SMALL, init='balanced', stem_channels=27),
    resnet_dbb=dict(SMALL, method='DBB'),
    resnet_acnet=dict(SMALL, method='ACNet'),
    expandnet=dict(SMALL, method='none', conv_cfg=dict(type='ExpandNetConv2d', expansion=1, plain_sizes=(1, 7))),
    resnext_orepa=dict(SMALL, type='OREPAResNeXt', depth=50, groups=2, width_per_group=2),
    repvgg_orepa=dict(type='OREPARepVGG', arch=REPVGG),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder, named by the date')
    args = parser.parse_args()
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = MODELS.build(dict(config))
        model.init_weights()
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):  # norms, scales and branches are none of their start
            optimizer.zero_grad()
            model(torch.randn(4, 3, 32, 32))[-1].square().mean().backward()
            optimizer.step()
        model.eval()
        # Half the bytes, of what the model then holds.
        state = {k: v.half() if v.is_floating_point() and v.numel() > 64 else v for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        x = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            output = model(x)[-1].flatten()[:64].clone()
        save(dict(config=config, state_dict=state, input=x, output=output), args.out / f'{name}.pth')
    print(f'wrote {len(CONFIGS)} networks to {args.out}')


if __name__ == '__main__':
    run(main)
