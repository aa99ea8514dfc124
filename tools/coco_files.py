"""COCO annotation files: their JSON schema, and what a schema cannot say."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from orepa_mm.errors import UsageError

ID = dict(type=['integer', 'string'])
SIDE = dict(type='number', exclusiveMinimum=0)
BOX = dict(type='array', items=dict(type='number'), minItems=4, maxItems=4)
POLYGONS = dict(type='array', items=dict(type='array', items=dict(type='number')))
RUN_LENGTHS = dict(
    type='object',
    required=['size', 'counts'],
    properties=dict(
        size=dict(type='array', items=dict(type='integer'), minItems=2, maxItems=2),
        counts=dict(type=['string', 'array'], items=dict(type='integer')),
    ),
)


def schema(picture: str = 'file_name', *, annotated: bool = True, panoptic: bool = False, masks: bool = False) -> dict:
    """The JSON schema of what the datasets of mmdet read; ``picture``: where an image says which file it is; ``masks``: with outlines."""
    place = dict(bbox=BOX, area=dict(type='number'))
    outline = dict(anyOf=[POLYGONS | dict(minItems=1), RUN_LENGTHS] if masks else [POLYGONS, RUN_LENGTHS, dict(type='null')])
    instance = _dicts(id=ID, image_id=ID, category_id=ID)
    instance['properties'] |= place | dict(segmentation=outline, iscrowd=dict(type=['integer', 'boolean']))
    # What is to be ignored needs no place.
    instance['if'] = dict(properties=dict(ignore=dict(enum=[False, 0])))
    instance['then'] = dict(required=[*place, *(['segmentation'] if masks else [])])
    segment = _dicts(id=ID, category_id=ID, **place)
    segments = _dicts(image_id=ID, file_name=dict(type='string'), segments_info=dict(type='array', items=segment))
    image = _dicts(id=ID, width=SIDE, height=SIDE, **{picture: dict(type='string', minLength=1)})
    category = _dicts(id=ID, name=dict(type='string'), **(dict(isthing=dict(enum=[0, 1, False, True])) if panoptic else {}))
    parts = dict(
        images=dict(type='array', items=image, minItems=1),
        categories=dict(type='array', items=category, minItems=1),
        annotations=dict(type='array', items=segments if panoptic else instance),
    )
    return dict(_dicts(**parts), required=['images', 'categories'] + ['annotations'] * annotated)


def _dicts(**properties: dict) -> dict:
    return dict(type='object', required=list(properties), properties=properties)


def read_coco(path: Path, picture: str = 'file_name', **options: bool) -> dict:
    """The content of an annotation file in which everything mmdet reads is there, of the right type, and belongs together.

    Annotations of images or categories that the file does not list, which the datasets leave out, are a warning. Arguments as for
    :func:`schema`.
    """
    try:
        import jsonschema_rs  # takes less than a second for COCO's training set, where Python would take minutes
    except ImportError:
        raise UsageError('jsonschema-rs, with which annotation files are checked, is missing: pip install jsonschema-rs.') from None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f'{path}: not JSON ({error}); a COCO annotation file is needed.') from None
    try:
        jsonschema_rs.validator_for(schema(picture, **options)).validate(content)
    except jsonschema_rs.ValidationError as error:
        where = ''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in error.instance_path).removeprefix('.')
        message = error.message if len(error.message) < 200 else f'{error.message[:100]} ... {error.message[-100:]}'
        raise UsageError(f'{path}: not a COCO annotation file: {where}{": " * bool(where)}{message}.') from None
    except ValueError as error:  # nested too deep to be shown
        raise UsageError(f'{path}: not a COCO annotation file: {error}.') from None
    _check_references(path, content)
    return content


def _check_references(path: Path, content: dict[str, list[dict[str, Any]]]) -> None:
    images, categories, annotations = (content.get(kind, []) for kind in ('images', 'categories', 'annotations'))
    for kind, key, items in (('images', 'id', images), ('categories', 'id', categories), ('categories', 'name', categories)):
        _require_unique(path, kind, key, (item[key] for item in items))
    if annotations and 'id' in annotations[0]:
        _require_unique(path, 'annotations', 'id', (item['id'] for item in annotations))
    panoptic = any('segments_info' in annotation for annotation in annotations)
    instances = annotations
    if panoptic:
        instances = [dict(part, image_id=annotation['image_id']) for annotation in annotations for part in annotation['segments_info']]
    for key, given, known in (('image_id', annotations, images), ('category_id', instances, categories)):
        ids = {item['id'] for item in known}
        dangling = [item[key] for item in given if item[key] not in ids]
        if dangling:
            message = (
                f'{path}: {len(dangling)} of {len(given)} annotations have {key}s that the file does not list, such as {dangling[0]!r}'
            )
            if panoptic or len(dangling) == len(given):
                raise UsageError(f'{message}; it cannot be read, write it again with all its images and categories.')
            print(f'warning: {message}; they are left out.', file=sys.stderr)
    _check_boxes(path, images, instances)


def _check_boxes(path: Path, images: list[dict[str, Any]], instances: list[dict[str, Any]]) -> None:
    sides = {image['id']: (image['width'], image['height']) for image in images}
    placed = [item for item in instances if 'bbox' in item and item['image_id'] in sides]
    start, extent = np.array([item['bbox'] for item in placed], float).reshape(-1, 2, 2).transpose(1, 0, 2)
    limits = np.array([sides[item['image_id']] for item in placed], float).reshape(-1, 2) + 1  # boxes may be rounded
    outside = ((start < -1) | (start + extent > limits)).any(1)
    if outside.any():
        message = f'{path}: {outside.sum()} of {len(placed)} boxes end outside their images, such as {placed[outside.argmax()]["bbox"]}'
        if ((start <= extent) & (extent <= limits)).all():
            raise UsageError(f'{message}, and all fit as corners: write [x, y, width, height] instead of [x1, y1, x2, y2].')
        print(f'warning: {message}.', file=sys.stderr)
    if placed and (extent < 1).any(1).all():
        raise UsageError(f'{path}: all boxes are smaller than a pixel, and would be left out: write them in pixels.')


def _require_unique(path: Path, kind: str, key: str, values: Iterable) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise UsageError(f'{path}: {len(twice)} {key}s of its {kind} are there twice, such as {twice[0]!r}; give each its own.')
