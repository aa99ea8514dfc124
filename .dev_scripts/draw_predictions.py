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

GAP, TITLE = 10, 22
DETECTED, SEGMENTED = ((0, 4, 5), (3, 6, 7)), (0, 1, 2)  # of the first eight, such that the columns are equally long
DETECTOR_WIDTH, SEGMENTOR_WIDTH = 320, 660  # names are painted into a segmentor's smaller


def found(folder: Path, pattern: str, numbers: tuple[int, ...]) -> list[Image.Image]:
    paths = sorted(folder.rglob(pattern))
    if len(paths) <= max(numbers):
        raise UsageError(f'{folder}: has {len(paths)} pictures, {max(numbers) + 1} are needed; run `make pipeline` first.')
    return [Image.open(paths[number]).convert('RGB') for number in numbers]


def column(title: str, width: int, pictures: list[Image.Image]) -> Image.Image:
    """Pictures below each other in one width, under a title."""
    scaled = [picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS) for picture in pictures]
    canvas = Image.new('RGB', (width, TITLE + sum(picture.height + GAP for picture in scaled)), 'white')
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
    title = '{}: ground truth left, prediction right'
    detected = [found(args.pipeline / 'pictures_detector', '*.jpg', numbers) for numbers in DETECTED]
    columns = [column(title.format('Mask R-CNN'), DETECTOR_WIDTH, pictures) for pictures in detected]
    columns += [column(title.format('PSPNet'), SEGMENTOR_WIDTH, found(args.pipeline / 'pictures_segmentor', '*.png', SEGMENTED))]
    canvas = Image.new('RGB', (sum(each.width + GAP for each in columns) - GAP, max(each.height for each in columns)), 'white')
    left = 0
    for each in columns:
        canvas.paste(each, (left, 0))
        left += each.width + GAP
    with replacing(args.out) as partial:
        canvas.save(partial, format='JPEG', quality=85)


if __name__ == '__main__':
    run(main)
