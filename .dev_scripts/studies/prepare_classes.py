#!/usr/bin/env python3
"""Lay out pictures of classes for a study: a training, a validation and a test part.

    python .dev_scripts/studies/prepare_classes.py cifar10.zip data/cifar10

SOURCE is a folder or .zip file with train/CLASS/PICTURE and val/CLASS/PICTURE or test/CLASS/PICTURE, such as CIFAR-10 as pictures. Of each
class the first pictures of its training part, in the order of their names, become train/CLASS/, the next ones val/CLASS/; the other part
becomes test/CLASS/.
"""

import argparse
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / 'tools')]
from common import UsageError, run  # noqa: E402

from orepa_mm.files import check_writable  # noqa: E402

PICTURES = ('.png', '.jpg', '.jpeg')


def parts_of(names: list[str], train: int, val: int) -> dict[str, str]:
    """The name each picture comes from, by its name in the new layout.

    Args:
        names: Paths with ``train/CLASS/PICTURE``, ``val/CLASS/PICTURE`` or ``test/CLASS/PICTURE`` at their ends.
        train: Pictures of a class to train with.
        val: Pictures of a class to validate with.

    Raises:
        UsageError: When a class has fewer, or none to test with.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        *_, part, label, picture = ('', '', *name.split('/'))
        if part in ('train', 'val', 'test') and Path(picture).suffix.lower() in PICTURES:
            found.setdefault(('train' if part == 'train' else 'test', label), []).append(name)
    labels = sorted({label for _, label in found})
    if not labels:
        raise UsageError('no train/CLASS/PICTURE in it.')
    layout = {}
    for label in labels:
        pictures, test = found.get(('train', label), []), found.get(('test', label), [])
        if len(pictures) < train + val or not test:
            raise UsageError(f'class {label}: {len(pictures)} to train and {len(test)} to test, needed: {train + val} and at least 1.')
        chosen = {'train': pictures[:train], 'val': pictures[train : train + val], 'test': test}
        layout |= {f'{part}/{label}/{Path(name).name}': name for part, names in chosen.items() for name in names}
    return layout


def prepare(source: Path, out: Path, train: int, val: int) -> int:
    """Write the new layout of ``source`` to the folder ``out``, whole or not at all.

    Returns:
        The number of pictures.

    Raises:
        UsageError: For a source that cannot be read or lacks pictures, and where ``out`` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f'{out}: is not empty; give a new folder.')
    check_writable(out, folder=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'{out.name}.') as partial:
        try:
            if source.is_dir():
                layout = parts_of([path.relative_to(source).as_posix() for path in source.rglob('*')], train, val)
                for target, name in layout.items():
                    _copy((source / name).read_bytes(), Path(partial, 'all', target))
            else:
                with zipfile.ZipFile(source) as file:
                    layout = parts_of(file.namelist(), train, val)
                    for target, name in layout.items():
                        _copy(file.read(name), Path(partial, 'all', target))
            if out.exists():
                out.rmdir()
            shutil.move(Path(partial, 'all'), out)
        except zipfile.BadZipFile:
            raise UsageError(f'{source}: is no .zip file, or a broken one.') from None
        except UsageError as error:
            raise UsageError(f'{source}: {error}') from None
    return len(layout)


def _copy(content: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='SOURCE', help='folder or .zip file')
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to make')
    parser.add_argument('--train', type=int, default=1600, help='pictures of a class to train with (default: %(default)s)')
    parser.add_argument('--val', type=int, default=400, help='pictures of a class to validate with (default: %(default)s)')
    args = parser.parse_args()
    if not args.source.exists():
        raise UsageError(f'{args.source}: no such file or folder.')
    print(f'wrote {prepare(args.source, args.out, args.train, args.val)} pictures to {args.out}')


if __name__ == '__main__':
    run(main)
