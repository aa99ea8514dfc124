#!/usr/bin/env python3
"""Run an ONNX file of export_onnx.py on pictures, print what it finds and draw it.

    python run_onnx.py model.onnx pictures/*.jpg --out-dir drawn

Needs onnxruntime, numpy and Pillow, and nothing else: copy this file to where the model is to run. What it has to know of the model
(task, classes, how pictures are resized) is in the metadata of the file.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
RESAMPLING = dict(nearest=Image.Resampling.NEAREST, bilinear=Image.Resampling.BILINEAR, bicubic=Image.Resampling.BICUBIC)


def refuse(message: str) -> None:
    """End with a line about what the user can mend."""
    print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


class Model:
    """An exported network with its metadata."""

    def __init__(self, path: str) -> None:
        try:
            self.session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime raises several kinds
            refuse(f'{path}: cannot be loaded ({" ".join(str(error).split())[:200]})')
        facts = self.session.get_modelmeta().custom_metadata_map
        try:
            self.run, self.facts = TASKS[facts['task']], facts
            self.steps, self.classes, self.palette = (json.loads(facts[key]) for key in ('prepare', 'classes', 'palette'))
        except (KeyError, ValueError) as error:
            refuse(f'{path}: its metadata are not those of export_onnx.py, so it is not known how to run it ({error})')
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.input = self.session.get_inputs()[0]
        self.channels = self.input.shape[1]
        if self.channels not in MODES:
            refuse(f'{path}: takes pictures of {self.channels} channels, which picture files have not')

    def __call__(self, picture: Image.Image) -> dict[str, np.ndarray]:
        array = as_input(picture)
        for have, need in zip(array.shape[2:], self.input.shape[2:], strict=True):
            if isinstance(need, int) and have != need:
                refuse(f'the model takes pictures of {self.input.shape[2]} x {self.input.shape[3]}, not {array.shape[2:]}')
        smallest, largest = json.loads(self.facts.get('sides', '[1, 100000]'))
        if min(array.shape[2:]) < smallest or max(array.shape[2:]) > largest:
            refuse(f'the model takes sides of {smallest} to {largest} pixels, not {array.shape[2]} x {array.shape[3]}')
        array = array.astype(np.float32 if self.input.type == 'tensor(float)' else np.uint8)
        return dict(zip(self.outputs, self.session.run(None, {self.input.name: array}), strict=True))

    def name(self, label: int) -> str:
        return str(self.classes[label]) if label < len(self.classes) else f'class {label}'

    def colour(self, label: int) -> tuple[int, ...]:
        if label < len(self.palette):
            return tuple(self.palette[label])
        return tuple(int(c) for c in np.random.default_rng(label).integers(64, 256, 3))


def as_input(picture: Image.Image) -> np.ndarray:
    """uint8 [1, C, H, W]; of four channels BGRA, as OpenCV loads it."""
    array = np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(array[:, [2, 1, 0, 3]] if array.shape[1] == 4 else array)


def prepare(picture: Image.Image, steps: list[dict]) -> tuple[Image.Image, tuple[int, int]]:
    """The picture as the network takes it, and the size (width, height) of the part of it that is not padding."""
    inside = picture.size
    for step in steps:
        width, height = picture.size
        if step['step'] == 'resize':
            inside = new_size(width, height, step)
            resampling = RESAMPLING.get(step['interpolation'], Image.Resampling.BILINEAR)
            if step['antialias']:
                picture = picture.resize(inside, resampling)
            else:  # as OpenCV does it, which the network was trained with
                picture = picture.transform(inside, Image.Transform.EXTENT, (0, 0, width, height), resampling)
        elif step['step'] == 'crop':
            w, h = step['size']
            left, top = max(0, round((width - w) / 2)), max(0, round((height - h) / 2))
            picture = picture.crop((left, top, min(left + w, width), min(top + h, height)))
            inside = picture.size
        elif step['step'] == 'pad':
            fill = [int(value) for value in step['value']]
            canvas = Image.new(picture.mode, tuple(step['size']), tuple(fill if len(fill) != 4 else [*fill[2::-1], fill[3]]))
            canvas.paste(picture, (0, 0))
            picture = canvas
    return picture, inside


def new_size(width: int, height: int, step: dict) -> tuple[int, int]:
    if 'inside' in step:
        ratio = min(step['inside'][0] / width, step['inside'][1] / height)
        return max(1, int(width * ratio + 0.5)), max(1, int(height * ratio + 0.5))
    if 'scale' not in step:  # one side is given
        sides = dict(short_side=min(width, height), long_side=max(width, height), width_side=width, height_side=height)
        side = next(name for name in sides if name in step)
        return tuple(int(step[side] * value / sides[side]) for value in (width, height))
    if not step['keep_ratio']:
        return tuple(step['scale'])
    ratio = min(max(step['scale']) / max(width, height), min(step['scale']) / min(width, height))
    return int(width * ratio + 0.5), int(height * ratio + 0.5)


def paste(mask: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """The probabilities [h, w] of a box's mask on the whole picture [height, width]: bilinear, zero outside the box."""

    def weights(start: float, end: float, count: int, size: int) -> np.ndarray:
        place = (np.arange(count) + 0.5 - start) / max(end - start, 1e-6) * size - 0.5
        return np.clip(1 - np.abs(place[:, None] - np.arange(size)), 0, None)

    x1, y1, x2, y2 = box
    return weights(y1, y2, height, mask.shape[0]) @ mask @ weights(x1, x2, width, mask.shape[1]).T


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def classify(model: Model, picture: Image.Image, args: argparse.Namespace) -> Image.Image:
    scores = model(prepare(picture, model.steps)[0])['scores'][0]
    if model.facts['scores'] == 'sigmoid logits':  # a picture can have several labels
        scores = sigmoid(scores)
    elif model.facts['scores'] == 'logits':
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    best = np.argsort(-scores)[:5]
    for label in best:
        print(f'  {scores[label]:.3f}  {model.name(label)}')
    drawn = picture.convert('RGB')
    write(ImageDraw.Draw(drawn), (2, 2), f'{model.name(best[0])} {scores[best[0]]:.2f}', model.colour(best[0]))
    return drawn


def segment(model: Model, picture: Image.Image, args: argparse.Namespace) -> Image.Image:
    prepared, (width, height) = prepare(picture, model.steps)
    outputs = model(prepared)
    if 'labels' in outputs:
        labels = outputs['labels'][0]
    elif outputs['logits'].shape[1] > 1:
        labels = outputs['logits'][0].argmax(0)
    else:
        labels = sigmoid(outputs['logits'][0, 0]) > float(model.facts.get('threshold', 0.3))  # mmseg's where the file does not say
    labels = Image.fromarray(labels[:height, :width].astype(np.int32)).resize(picture.size, Image.Resampling.NEAREST)
    labels = np.asarray(labels)
    found, counts = np.unique(labels, return_counts=True)
    for label, count in sorted(zip(found, counts, strict=True), key=lambda pair: -pair[1]):
        print(f'  {count / labels.size:6.1%}  {model.name(label)}')
    colours = np.array([model.colour(label) for label in range(found.max() + 1)], np.uint8)
    return Image.blend(picture.convert('RGB'), Image.fromarray(colours[labels]), 0.5)


def detect(model: Model, picture: Image.Image, args: argparse.Namespace) -> Image.Image:
    prepared, inside = prepare(picture, model.steps)
    outputs = model(prepared)
    width, height = picture.size
    scale = np.array([inside[0] / width, inside[1] / height] * 2, np.float32)
    boxes, scores, labels = outputs['boxes'] / scale, outputs['scores'], outputs['labels']
    shown = np.flatnonzero(scores >= args.score_thr)
    for index in shown:
        print(f'  {scores[index]:.3f}  {model.name(labels[index]):<15} {" ".join(f"{value:7.1f}" for value in boxes[index])}')
    print(f'  {len(shown)} of {len(scores)} boxes score {args.score_thr} or more')
    drawn, upwards = np.array(picture.convert('RGB')), shown[::-1]  # the best over the others
    for index in upwards if 'masks' in outputs else ():
        mask = paste(outputs['masks'][index], boxes[index], width, height) >= float(model.facts['mask_threshold'])
        drawn[mask] = drawn[mask] // 2 + np.array(model.colour(labels[index]), np.uint8) // 2
    drawn = Image.fromarray(drawn)
    draw = ImageDraw.Draw(drawn)
    for index in upwards:
        box, colour, name = boxes[index], model.colour(labels[index]), model.name(labels[index])
        draw.rectangle([float(value) for value in box], outline=colour)
        write(draw, (float(box[0]) + 1, float(box[1]) + 1), f'{name} {scores[index]:.2f}', colour)
    return drawn


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, ...]) -> None:
    """Text on a field of its colour, in black or white, whichever can be read on it."""
    draw.rectangle(draw.textbbox(place, text), fill=colour)
    draw.text(place, text, fill='black' if sum(colour) > 380 else 'white')


def open_picture(path: Path, channels: int) -> Image.Image:
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert(MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        refuse(f'{path}: cannot be read as a picture ({error})')


TASKS = dict(classification=classify, segmentation=segment, detection=detect)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL.onnx', help='file of export_onnx.py')
    parser.add_argument('pictures', nargs='+', type=Path, metavar='PICTURE')
    parser.add_argument('--out-dir', type=Path, default=Path('drawn'), help='where the drawn pictures go (default: drawn)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score of a box that is shown (default: 0.3)')
    args = parser.parse_args()
    model = Model(args.model)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(args.pictures):
        picture = open_picture(path, model.channels)
        print(path)
        drawn = model.run(model, picture, args)
        same_name = any(other.stem == path.stem for other in args.pictures[:index])
        drawn.save(args.out_dir / (f'{path.stem}_{index}.png' if same_name else f'{path.stem}.png'))


if __name__ == '__main__':
    try:
        main()
    except OSError as error:
        if error.filename is None:
            raise
        refuse(f'{error.filename}: {error.strerror}')
