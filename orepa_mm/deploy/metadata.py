"""What a person needs beside the graph to run an exported network: in the file, as strings."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel

from ..registry import type_name
from ..version import __version__
from .networks import DeployNetwork

Step = dict[str, Any]
QUIET = ('Load', 'Pack', 'Collect', 'ToTensor', 'ImageToTensor')  # transforms that leave the picture as it is


def _test_dataset(cfg: Config) -> dict[str, Any]:
    dataset: Any = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def _resize(transform: dict[str, Any]) -> Step:
    how = dict(interpolation=transform.get('interpolation', 'bilinear'), antialias=transform.get('backend') == 'pillow')
    if type_name(transform['type']) == 'ResizeEdge':
        return dict(step='resize', **{f'{transform.get("edge", "short")}_side': transform['scale']}, **how)
    return dict(step='resize', scale=list(_pair(transform['scale'])), keep_ratio=bool(transform.get('keep_ratio')), **how)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def preparation(cfg: Config, channels: int = 3) -> tuple[list[Step], list[str]]:
    """How a picture is resized before the network sees it, from the config's test pipeline.

    Returns:
        The steps in their order, sizes as (width, height): ``resize`` with ``short_side`` (``long_side``, ``width_side``, ``height_side``)
        or with ``scale`` and ``keep_ratio`` (mmcv's: the long and the short side), ``crop`` around the centre, ``pad`` at the right and at
        the bottom; and the names of the transforms that are none of these.
    """
    steps, others = [], []
    for transform in _test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline') or []:
        name = type_name(transform['type'])
        if name in ('Resize', 'ResizeEdge') and 'scale' in transform:
            steps.append(_resize(transform))
        elif name == 'CenterCrop':
            steps.append(dict(step='crop', size=list(_pair(transform['crop_size']))))
        elif name == 'Pad' and transform.get('size'):
            value = transform.get('pad_val', 0)
            value = value.get('img', 0) if isinstance(value, dict) else value
            fill = [value] * channels if isinstance(value, int | float) else list(value)
            steps.append(dict(step='pad', size=list(_pair(transform['size'])), value=fill[::-1] if channels == 3 else fill))
        elif not name.startswith(QUIET):
            others.append(name)
    return steps, others


def usual_size(cfg: Config) -> tuple[int, int] | None:
    """Height and width of the pictures after the test pipeline, as far as it says; None where it does not."""
    size = None
    for step in preparation(cfg)[0]:
        size = step.get('scale') or step.get('size') or size
    return None if size is None else (size[1], size[0])


def fixed_preparation(steps: list[Step], size: tuple[int, int], network: DeployNetwork) -> list[Step]:
    """The steps for a network that takes pictures of one size (height, width) only."""
    box = [size[1], size[0]]
    if steps and (steps[-1]['step'] in ('crop', 'pad')) and steps[-1]['size'] == box:
        return steps
    keep_ratio = any(step.get('keep_ratio') for step in steps)
    how = dict(interpolation='bilinear', antialias=False)
    if not keep_ratio:
        return [dict(step='resize', scale=box, keep_ratio=False, **how)]
    # A scale has a long and a short side, whichever way a picture stands; this box lies as it lies.
    mean = network.picture.mean.flatten().round().clamp(0, 255).tolist()
    fill = mean[::-1] if network.picture.flipped else mean
    fill = fill * network.channels if len(fill) == 1 else fill
    return [dict(step='resize', inside=box, **how), dict(step='pad', size=box, value=fill)]


def dataset_names(cfg: Config, model: BaseModel) -> tuple[list[Any], list[Any]]:
    """Classes and palette of the checkpoint, else of the config; empty where neither names them."""
    metas = [getattr(model, 'dataset_meta', {}), _test_dataset(cfg).get('metainfo') or {}]
    metas = [{key.lower(): value for key, value in meta.items()} for meta in metas]
    classes, palette = (next((list(meta[key]) for meta in metas if meta.get(key)), []) for key in ('classes', 'palette'))
    return classes, [list(colour) for colour in palette]


def metadata(cfg: Config, network: DeployNetwork, checkpoint: str | Path, steps: list[Step], others: list[str]) -> dict[str, str]:
    """The keys and values that go into the file; ``steps`` and ``others`` as :func:`preparation` gives them."""
    classes, palette = dataset_names(cfg, network.model)
    values = dict(
        task=network.task,
        channels={1: 'grey', 3: 'RGB', 4: 'BGRA'}.get(network.channels, 'as the config loads them'),
        input=f'uint8 pictures [N, {network.channels}, H, W]; mean, deviation and padding are part of the graph'
        + ('' if network.batched else '; N is 1'),
        prepare=steps,
        **(dict(also_prepare=others) if others else {}),
        classes=classes,
        palette=palette,
        **network.facts(),
        config=Path(cfg.filename).name,
        checkpoint=Path(checkpoint).name,
        checkpoint_sha256=hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        orepa_mm=__version__,
    )
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
