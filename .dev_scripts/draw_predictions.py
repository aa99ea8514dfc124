#!/usr/bin/env python3
"""Put some of the pictures that `make pipeline` painted into work_dirs/pipeline into one: docs/images/predictions.jpg."""

from pathlib import Path

from PIL import Image, ImageDraw

from orepa_mm.files import replacing

ROOT = Path(__file__).resolve().parent.parent
GAP, TITLE = 10, 22
DETECTED, SEGMENTED = ((0, 4, 5), (3, 6, 7)), (0, 1, 2)  # of the first eight, such that the columns are equally long
DETECTOR_WIDTH, SEGMENTOR_WIDTH = 320, 660  # names are painted into a segmentor's smaller


def column(title: str, width: int, folder: Path, numbers: tuple[int, ...]) -> Image.Image:
    """Pictures below each other in one width, under a title."""
    paths = sorted(folder.rglob('*.[jp][pn]g'))
    pictures = [Image.open(paths[number]).convert('RGB') for number in numbers]
    scaled = [picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS) for picture in pictures]
    canvas = Image.new('RGB', (width, TITLE + sum(picture.height + GAP for picture in scaled)), 'white')
    ImageDraw.Draw(canvas).text((2, 4), f'{title}: ground truth left, prediction right', fill='black', font_size=14)
    top = TITLE
    for picture in scaled:
        canvas.paste(picture, (0, top))
        top += picture.height + GAP
    return canvas


if __name__ == '__main__':
    pipeline = ROOT / 'work_dirs' / 'pipeline'
    columns = [column('Mask R-CNN', DETECTOR_WIDTH, pipeline / 'pictures_detector', numbers) for numbers in DETECTED]
    columns.append(column('PSPNet', SEGMENTOR_WIDTH, pipeline / 'pictures_segmentor', SEGMENTED))
    canvas = Image.new('RGB', (sum(each.width + GAP for each in columns) - GAP, max(each.height for each in columns)), 'white')
    left = 0
    for each in columns:
        canvas.paste(each, (left, 0))
        left += each.width + GAP
    with replacing(ROOT / 'docs' / 'images' / 'predictions.jpg') as partial:
        canvas.save(partial, format='JPEG', quality=85)
