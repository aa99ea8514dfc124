#!/usr/bin/env python3
"""Put some of the pictures that `make pipeline` painted into one: docs/images/predictions.jpg.

python .dev_scripts/draw_predictions.py work_dirs/pipeline docs/images/predictions.jpg
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
from common import UsageError, run  # noqa: E402

from orepa_mm.files import check_writable, replacing  # noqa: E402

GAP, TITLE, WIDTH = 10, 22, 432
DETECTED, SEGMENTED = ((0, 5), (4, 6, 7)), (0, 1, 2, 3, 4)  # of the first eight, such that the columns are equally long


def found(folder: Path, pattern: str, numbers: tuple[int, ...]) -> list[Image.Image]:
    paths = sorted(folder.rglob(pattern))
    if len(paths) <= max(numbers):
        raise UsageError(f'{folder}: has {len(paths)} pictures, {max(numbers) + 1} are needed; run `make pipeline` first.')
    return [Image.open(paths[number]).convert('RGB') for number in numbers]


def column(title: str, pictures: list[Image.Image]) -> Image.Image:
    """Pictures below each other in one width, under a title."""
    scaled = [picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS) for picture in pictures]
    canvas = Image.new('RGB', (WIDTH, TITLE + sum(picture.height + GAP for picture in scaled)), 'white')
    ImageDraw.Draw(canvas).text((2, 4), title, fill='black', font_size=14)
    top = TITLE
    for picture in scaled:
        canvas.paste(picture, (0, top))
        top += picture.height + GAP
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pipeline', type=Path, help='folder of a pipeline that has run')
    parser.add_argument('out', type=Path, metavar='OUT', help='the picture to write')
    args = parser.parse_args()
    check_writable(args.out, force=True)
    title = '{}: ground truth on the left, prediction on the right'
    columns = [column(title.format('Mask R-CNN'), found(args.pipeline / 'pictures_detector', '*.jpg', numbers)) for numbers in DETECTED]
    columns += [column(title.format('PSPNet'), found(args.pipeline / 'pictures_segmentor', '*.png', SEGMENTED))]
    canvas = Image.new('RGB', (sum(each.width + GAP for each in columns) - GAP, max(each.height for each in columns)), 'white')
    for number, each in enumerate(columns):
        canvas.paste(each, (number * (WIDTH + GAP), 0))
    with replacing(args.out) as partial:
        canvas.save(partial, format='JPEG', quality=85)


if __name__ == '__main__':
    run(main)
