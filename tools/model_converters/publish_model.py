#!/usr/bin/env python3
"""Prepare a checkpoint for publishing: keep its weights and description, drop the optimizer and the rest, put a hash into its name.

    python tools/model_converters/publish_model.py epoch_12.pth mask-rcnn_orepa-r50_fpn_1x_coco.pth

writes mask-rcnn_orepa-r50_fpn_1x_coco-0123abcd.pth, where 0123abcd begins the file's SHA-256. torch.load(..., weights_only=True) reads it.
"""

import argparse
import hashlib
import io
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from common import UsageError, run  # noqa: E402

from orepa_mm.checkpoints.reading import read_checkpoint  # noqa: E402
from orepa_mm.files import check_writable, replacing  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('in_file', type=Path, help='checkpoint of a training, or a deployed one')
    parser.add_argument('out_file', type=Path, help='name of the result, without the hash')
    parser.add_argument('--save-keys', nargs='+', default=['meta', 'state_dict'], help='what is kept (default: %(default)s)')
    args = parser.parse_args()
    check_writable(args.out_file)
    checkpoint = read_checkpoint(args.in_file)
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    kept = {key: value for key, value in checkpoint.items() if key in args.save_keys}
    if 'state_dict' not in kept:
        raise UsageError(f'--save-keys {" ".join(args.save_keys)}: without state_dict there would be no weights in the result.')
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    out = args.out_file.with_name(f'{args.out_file.name.removesuffix(".pth")}-{digest[:8]}.pth')
    with replacing(out) as partial:
        partial.write_bytes(buffer.getbuffer())
    dropped = ', '.join(key for key in checkpoint if key not in kept)
    print(f'wrote {out}, {out.stat().st_size / 2**20:.1f} MiB, SHA-256 {digest}' + f'; dropped: {dropped}' * bool(dropped))


if __name__ == '__main__':
    run(main)
