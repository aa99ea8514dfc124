"""mmengine's checkpoint loaders for every kind of path, reading without running code from the file.

Those that download are mmengine's as soon as this package is imported, the others from :func:`use_safe_loaders` on.
"""

import io
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_mmcls_models, get_torchvision_models

from ..errors import CheckpointError
from .reading import read_checkpoint

GONE = 'openmmlab.com'


def use_safe_loaders() -> None:
    """Let mmengine load every checkpoint by :func:`.read_checkpoint` until the process ends.

    mmengine's own loaders either refuse the log history in its checkpoints, or fall back to running what a file says.
    """
    _register(STORED)


def _register(loaders: dict[Any, Any]) -> None:
    for prefixes, loader in loaders.items():
        CheckpointLoader.register_scheme(prefixes, loader=loader, force=True)


def load_from_local(filename: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    return read_checkpoint(Path(filename).expanduser(), map_location)


def load_from_http(url: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    """Download into torch hub's folder of checkpoints, once, and read from there.

    Raises:
        CheckpointError: When that fails, and for what OpenMMLab's host, which is gone, has not left there.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    host = (urlparse(url).hostname or '').rstrip('.')
    if f'.{host}'.endswith(f'.{GONE}') and not path.exists():
        raise CheckpointError(
            f"{url}: {GONE} is no longer OpenMMLab's (its domain expired in June 2026), and nothing is downloaded from there. Take "
            "torchvision's weights (torchvision://resnet50; in the place of a ResNetV1c with type='ResNet'), timm's, or the path of a file "
            'of your own (docs/stock_weights.md).'
        )
    error = None
    if get_rank() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError) as caught:
            error = caught
    barrier()  # the other ranks wait for the file, whether it comes or not
    if error is not None:
        raise CheckpointError(f'{url}: cannot be downloaded ({error}); download it elsewhere and give the path of the file.')
    return read_checkpoint(path, map_location)


def load_from_torchvision(filename: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    return _load_named(filename, get_torchvision_models(), map_location)


def load_from_openmmlab(filename: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    models, renamed = get_external_models(), get_deprecated_model_names()
    return _load_named(filename, models | {old: models[new] for old, new in renamed.items() if new in models}, map_location)


def load_from_mmcls(filename: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    checkpoint = _load_named(filename, get_mmcls_models(), map_location)
    state = checkpoint.get('state_dict', checkpoint)
    return dict(state_dict={key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')})


def _load_named(filename: str, urls: dict[str, str], map_location: str | torch.device | None) -> dict[str, Any]:
    scheme, _, name = filename.partition('://')
    if name not in urls:
        raise CheckpointError(f'{filename}: {scheme} has no checkpoint of this name; known are {", ".join(sorted(urls)[:5])}, ...')
    return load_from_http(urls[name], map_location)


def load_from_storage(filename: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    return read_checkpoint(filename, map_location, file=io.BytesIO(get(filename)))


def load_from_pavi(filename: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    raise CheckpointError(f'{filename}: cannot be read from there without running code from it; download it and give the path of the file.')


DOWNLOADED = {
    ('http://', 'https://'): load_from_http,
    ('modelzoo://', 'torchvision://'): load_from_torchvision,
    ('open-mmlab://', 'openmmlab://'): load_from_openmmlab,
    'mmcls://': load_from_mmcls,
}
STORED = {
    '': load_from_local,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_storage,
    'pavi://': load_from_pavi,
}
_register(DOWNLOADED)
