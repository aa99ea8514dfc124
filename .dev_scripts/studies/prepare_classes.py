#!/usr/bin/env python3
"""Lay out images of classes for a study: a training, a validation and a test part.

    python .dev_scripts/studies/prepare_classes.py cifar10.zip data/cifar10

SOURCE is a folder or .zip file with train/CLASS/IMAGE and val/CLASS/IMAGE or test/CLASS/IMAGE, such as CIFAR-10. Of each class the
first images of its training part, in the order of their names, become train/CLASS/, the next ones val/CLASS/; the other part becomes
test/CLASS/.
"""

import argparse
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools')]
from common import UsageError, run  # noqa: E402


def prepare(source: Path, out: Path, train: int, val: int) -> int:
    """Write the new layout of ``source`` to the folder ``out``, whole or not at all, and return the number of images."""
    if out.exists():
        raise UsageError(f'{out}: is there; give a new folder.')
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        if source.is_file():
            try:
                shutil.unpack_archive(source, Path(folder, 'source'))
            except (shutil.ReadError, zipfile.BadZipFile) as error:
                raise UsageError(f'{source}: is no archive, or a broken one ({error}).') from None
            source = Path(folder, 'source')
        parts: dict[tuple[str, str], list[Path]] = {}
        for path in sorted(path for path in source.rglob('*') if path.suffix.lower() in ('.png', '.jpg', '.jpeg')):
            *_, part, label, _ = path.parts
            if part not in ('train', 'val', 'test'):
                continue
            parts.setdefault(('train' if part == 'train' else 'test', label), []).append(path)
        if not parts:
            raise UsageError(f'{source}: no train/CLASS/IMAGE in it.')
        count = 0
        for label in sorted({label for _, label in parts}):
            images, test = parts.get(('train', label), []), parts.get(('test', label), [])
            if len(images) < train + val or not test:
                raise UsageError(f'{source}: class {label} has {len(images)} to train and {len(test)} to test, needed: {train + val}, 1.')
            for part, chosen in dict(train=images[:train], val=images[train : train + val], test=test).items():
                Path(folder, 'all', part, label).mkdir(parents=True)
                for path in chosen:
                    shutil.copy(path, Path(folder, 'all', part, label))
                count += len(chosen)
        shutil.move(Path(folder, 'all'), out)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='SOURCE', help='folder or .zip file')
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to make')
    parser.add_argument('--train', type=int, default=1600, help='images of a class to train with (default: %(default)s)')
    parser.add_argument('--val', type=int, default=400, help='images of a class to validate with (default: %(default)s)')
    args = parser.parse_args()
    if not args.source.exists():
        raise UsageError(f'{args.source}: no such file or folder.')
    print(f'wrote {prepare(args.source, args.out, args.train, args.val)} images to {args.out}')


if __name__ == '__main__':
    run(main)
