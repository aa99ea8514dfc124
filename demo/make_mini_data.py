#!/usr/bin/env python3
"""Draw small ImageNet, COCO and Cityscapes datasets, in the on-disk layouts of the real ones.

Street-like scenes of textured shapes with occlusion, scale change and clutter. The same seed gives the same files::

    python demo/make_mini_data.py                        # all three under data/
    python demo/make_mini_data.py coco --train 400 --seed 1

The COCO annotation files list the real 80 categories, of which the shapes use five, so a config reads this set and the real one
with the same classes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'tools')]
from progress import track  # noqa: E402

# shape: (COCO category, Cityscapes train id, hue it is usually painted in)
SHAPES = {
    'circle': ('sports ball', 7, 0.0),
    'cross': ('airplane', 6, 0.2),
    'diamond': ('kite', 11, 0.4),
    'triangle': ('pizza', 18, 0.6),
    'rectangle': ('tv', 13, 0.8),
}
SKY, BUILDING, ROAD, IGNORE = 10, 2, 0, 255  # Cityscapes train ids


@dataclass
class Instance:
    """One shape of a scene: its name and its visible mask, [H, W] bool."""

    shape: str
    mask: np.ndarray


@dataclass
class Scene:
    """A picture [H, W, 3] uint8 (BGR), its background's train ids [H, W] uint8, and its instances from back to front."""

    image: np.ndarray
    layout: np.ndarray
    instances: list[Instance]


def colour(rng: np.random.Generator, hue: float | None) -> np.ndarray:
    """A random BGR colour: vivid and near ``hue`` (0 to 1), or pale where that is None."""
    h = rng.uniform(0, 1) if hue is None else (hue + rng.normal(0, 0.03)) % 1
    s, v = (rng.uniform(0.0, 0.35), rng.uniform(0.3, 0.8)) if hue is None else (rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.0))
    hsv = np.array([[[h * 180, s * 255, v * 255]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def texture(rng: np.random.Generator, height: int, width: int, hue: float | None = None) -> np.ndarray:
    """Stripes, checks, dots or clouds in two colours, [H, W, 3] float32."""
    first, second = colour(rng, hue), colour(rng, hue)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:
        blend = (np.sin(2 * np.pi * u / period) > 0).astype(np.float32)
    elif kind == 1:
        blend = ((np.floor(u / period) + np.floor(v / period)) % 2).astype(np.float32)
    elif kind == 2:
        blend = (np.hypot(u % period - period / 2, v % period - period / 2) < period / 3).astype(np.float32)
    else:
        coarse = rng.uniform(0, 1, (max(2, height // 8), max(2, width // 8))).astype(np.float32)
        blend = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    shade = np.linspace(*rng.uniform(0.8, 1.2, 2), width, dtype=np.float32)[None, :, None]
    return (first + (second - first) * blend[..., None]).astype(np.float32) * shade


def usual_hue(rng: np.random.Generator, shape: str) -> float:
    """Nine times in ten the hue of the shape, else any: what decides is the outline."""
    return SHAPES[shape][2] if rng.uniform() < 0.9 else rng.uniform(0, 1)


def outline(rng: np.random.Generator, shape: str, radius: float) -> np.ndarray:
    """The corners of a shape around the origin, slightly stretched and turned, [N, 2]."""
    corners, turn = {
        'circle': (40, 0.0),
        'cross': (12, np.pi / 12),
        'diamond': (4, 0.0),
        'triangle': (3, -np.pi / 2),
        'rectangle': (4, np.pi / 4),
    }[shape]
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + turn
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    if shape == 'cross':
        points[1::3] *= 0.4  # every third corner lies inside
    stretch = {'rectangle': (1.35, 0.8), 'diamond': (0.75, 1.2)}.get(shape, (1.0, 1.0))
    points = points * stretch * rng.uniform(0.9, 1.1, 2)
    tilt = rng.uniform(-0.25, 0.25)
    rotation = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    return radius * points @ rotation.T


def fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def paint(image: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> None:
    """Lay ``colours`` over ``image`` inside ``mask`` with a soft edge."""
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.6)[..., None]
    image[:] = image * (1 - alpha) + colours * alpha


def background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky, buildings and road with clutter: picture and train ids."""
    image = texture(rng, height, width)
    layout = np.full((height, width), SKY, np.uint8)
    horizon = int(height * rng.uniform(0.35, 0.6))
    left = 0
    while left < width:
        right = left + int(rng.uniform(0.12, 0.3) * width)
        roof = int(horizon * rng.uniform(0.25, 0.9))
        image[roof:horizon, left:right] = texture(rng, height, width)[roof:horizon, left:right]
        layout[roof:horizon, left:right] = BUILDING
        left = right + int(rng.uniform(0, 0.1) * width)
    image[horizon:] = texture(rng, height, width)[horizon:]
    layout[horizon:] = ROAD
    for _ in range(rng.integers(4, 12)):
        ends = rng.uniform(0, [width, height], (2, 2)).round().astype(int).tolist()
        cv2.line(image, *ends, rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 3)), cv2.LINE_AA)
    return image, layout


def draw_scene(rng: np.random.Generator, height: int, width: int, shapes: list[str], scale: tuple[float, float]) -> Scene:
    """Draw ``shapes`` over a background, each with a radius of ``scale`` times the shorter side; later ones hide earlier ones.

    Shapes of which less than a third, or less than 40 pixels, stay visible are left out of the instances.
    """
    image, layout = background(rng, height, width)
    placed = []
    for shape in shapes:
        radius = min(height, width) * np.exp(rng.uniform(*np.log(scale)))
        centre = rng.uniform([0.1 * width, 0.1 * height], [0.9 * width, 0.9 * height])
        mask = fill(outline(rng, shape, radius) + centre, height, width)
        paint(image, mask, texture(rng, height, width, usual_hue(rng, shape)))
        placed.append((shape, mask))
    instances, hidden = [], np.zeros((height, width), bool)
    for shape, mask in reversed(placed):
        visible = mask & ~hidden
        if visible.sum() >= max(40, mask.sum() / 3):
            instances.append(Instance(shape, visible))
        hidden |= mask
    image += rng.normal(0, 4, image.shape)
    return Scene(image.clip(0, 255).astype(np.uint8), layout, instances[::-1])


def crowd(rng: np.random.Generator) -> list[str]:
    return rng.choice(list(SHAPES), rng.integers(2, 8)).tolist()


def progress(items: range, title: str) -> Iterator[int]:
    yield from track(items, title)
    print(f'{title}: {len(items)} pictures', flush=True)


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())  # cv2.imwrite says nothing of a full disk


def write_imagenet(root: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    """``<split>/<class>/*.jpg``: one large shape a picture, two small ones as clutter."""
    for i in progress(range(count), f'imagenet {split}'):
        shape = list(SHAPES)[i % len(SHAPES)]
        others = [name for name in SHAPES if name != shape]
        scene = draw_scene(rng, size, size, rng.choice(others, 2).tolist(), (0.06, 0.12))
        mask = fill(outline(rng, shape, size * rng.uniform(0.22, 0.4)) + rng.uniform(0.35, 0.65, 2) * size, size, size)
        image = scene.image.astype(np.float32)
        paint(image, mask, texture(rng, size, size, usual_hue(rng, shape)))
        path = root / split / shape / f'{split}_{i:05d}.jpg'
        write_picture(path, image.clip(0, 255).astype(np.uint8))


def annotation(number: int, image_id: int, category_id: int, mask: np.ndarray) -> dict:
    """A COCO annotation of the visible part of an instance."""
    polygons = outer_polygons(mask)
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return dict(
        id=number,
        image_id=image_id,
        category_id=category_id,
        segmentation=polygons,
        bbox=[x, y, w, h],
        area=float(sum(cv2.contourArea(np.float32(polygon).reshape(-1, 2)) for polygon in polygons)),
        iscrowd=0,
    )


def coco_categories() -> list[dict]:
    """The 80 categories under COCO's own ids."""
    from mmdet.datasets import CocoDataset

    # COCO counts 1 to 90 and leaves ten ids out.
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [i for i in range(1, 91) if i not in unused]
    return [dict(id=i, name=name) for i, name in zip(ids, CocoDataset.METAINFO['classes'], strict=True)]


def outer_polygons(mask: np.ndarray, fine: int = 4) -> list[list[float]]:
    """Outlines of a mask in COCO's coordinates, where pixel x covers x to x + 1.

    Contours run through pixel centres and so half a pixel inside the mask; on a finer grid that is next to nothing.
    """
    magnified = cv2.resize(mask.astype(np.uint8), None, fx=fine, fy=fine, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(magnified, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((contour + 0.5) / fine).flatten().tolist() for contour in contours if len(contour) >= 3]


def write_coco(root: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    """``<split>2017/*.jpg`` and ``annotations/instances_<split>2017.json`` with polygons of the visible parts."""
    categories = coco_categories()
    ids = {category['name']: category['id'] for category in categories}
    images, annotations = [], []
    folder = root / f'{split}2017'
    for i in progress(range(count), f'coco {split}'):
        height, width = (int(size * factor) for factor in rng.choice([(0.75, 1.0), (1.0, 1.0), (1.0, 0.75)]))
        scene = draw_scene(rng, height, width, crowd(rng), (0.08, 0.3))
        name = f'{i + 1:012d}.jpg'
        write_picture(folder / name, scene.image)
        images.append(dict(id=i + 1, file_name=name, height=height, width=width))
        for instance in scene.instances:
            category = ids[SHAPES[instance.shape][0]]
            annotations.append(annotation(len(annotations) + 1, i + 1, category, instance.mask))
    path = root / 'annotations' / f'instances_{split}2017.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


# The eight classes of Cityscapes that have instances: their ids in the annotation files and their train ids.
CITYSCAPES_THINGS = {
    'person': (24, 11),
    'rider': (25, 12),
    'car': (26, 13),
    'truck': (27, 14),
    'bus': (28, 15),
    'train': (31, 16),
    'motorcycle': (32, 17),
    'bicycle': (33, 18),
}


def write_cityscapes(root: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    """``leftImg8bit/<split>/mini/*_leftImg8bit.png``, twice as wide as high, and ``gtFine/<split>/mini/*_gtFine_labelTrainIds.png``.

    The instances of things are in ``annotations/instancesonly_filtered_gtFine_<split>.json``, as mmdet's converter writes them.
    """
    ids = {train_id: i for i, train_id in CITYSCAPES_THINGS.values()}
    images, annotations = [], []
    for i in progress(range(count), f'cityscapes {split}'):
        scene = draw_scene(rng, size // 2, size, crowd(rng), (0.1, 0.3))
        labels = scene.layout.copy()
        name = f'mini/mini_{i:06d}_000019'
        images.append(dict(id=i + 1, file_name=f'{name}_leftImg8bit.png', height=size // 2, width=size))
        for instance in scene.instances:
            train_id = SHAPES[instance.shape][1]
            labels[instance.mask] = train_id
            contours, _ = cv2.findContours(instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(labels, contours, -1, IGNORE, 1)
            if train_id in ids:
                annotations.append(annotation(len(annotations) + 1, i + 1, ids[train_id], instance.mask))
        for kind, suffix, picture in (('leftImg8bit', 'leftImg8bit', scene.image), ('gtFine', 'gtFine_labelTrainIds', labels)):
            path = root / kind / split / f'{name}_{suffix}.png'
            write_picture(path, picture)
    categories = [dict(id=i, name=name) for name, (i, _) in CITYSCAPES_THINGS.items()]
    path = root / 'annotations' / f'instancesonly_filtered_gtFine_{split}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


MARKER = 'DRAWN.txt'
SMALLEST = 32  # pixels, below which shapes have no room

# writer, pictures to train on, pictures to validate on, longer side in pixels
DATASETS: dict[str, tuple[Callable, int, int, int]] = {
    'imagenet': (write_imagenet, 1500, 200, 64),
    'coco': (write_coco, 300, 60, 192),
    'cityscapes': (write_cityscapes, 200, 40, 256),
}


def make(name: str, root: Path, train: int | None = None, val: int | None = None, size: int | None = None, seed: int = 0) -> None:
    """Draw dataset ``name`` into ``root``, which appears, or is replaced, only once all is drawn.

    Raises:
        FileExistsError: When ``root`` is something that was not drawn here.
    """
    write, default_train, default_val, default_size = DATASETS[name]
    _check_ours(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as folder:
        drawn, old = Path(folder) / 'drawn', Path(folder) / 'old'
        for offset, (split, count) in enumerate((('train', train or default_train), ('val', val or default_val))):
            rng = np.random.default_rng([seed, list(DATASETS).index(name), offset])
            write(drawn, split, count, size or default_size, rng)
        (drawn / MARKER).write_text('Drawn by demo/make_mini_data.py, which may draw it again.\n')
        _check_ours(root)
        if root.exists():
            root.rename(old)
        drawn.rename(root)


def _check_ours(root: Path) -> None:
    if root.exists() and not (root / MARKER).is_file():
        raise FileExistsError(f'{root} was not drawn by this script, so it is left alone: move it away, or give another --out')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('datasets', nargs='*', metavar='DATASET', help=f'which to draw: {", ".join(DATASETS)} (default: all)')
    parser.add_argument('--out', type=Path, default=Path('data'), help='folder for <dataset>-mini folders (default: data)')
    parser.add_argument('--train', type=int, help='pictures to train on')
    parser.add_argument('--val', type=int, help='pictures to validate on')
    parser.add_argument('--size', type=int, help='longer side in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--force', action='store_true', help='draw again what is there')
    args = parser.parse_args()
    unknown = [name for name in args.datasets if name not in DATASETS]
    if unknown:
        parser.error(f'unknown dataset {unknown[0]!r}; choose from {", ".join(DATASETS)}')
    for option, least in dict(train=1, val=1, size=1, seed=0).items():
        if getattr(args, option) is not None and getattr(args, option) < least:
            parser.error(f'--{option} must be {least} or more')
    if args.size is not None and args.size < SMALLEST:
        parser.error(f'--size must be {SMALLEST} or more')
    for name in args.datasets or DATASETS:
        root = args.out / f'{name}-mini'
        if root.exists() and not args.force:
            print(f'{root} is there already (--force draws it again)')
            continue
        try:
            make(name, root, args.train, args.val, args.size, args.seed)
        except OSError as error:
            parser.exit(2, f'error: {root}: cannot be written: {error.strerror or error}\n')
        print(f'wrote {root}')


if __name__ == '__main__':
    main()
