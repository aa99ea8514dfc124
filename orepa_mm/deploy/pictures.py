"""Real pictures for checking and calibrating: from a folder or from a config's test dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UsageError
from ..registry import scope_of

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # channels -> Pillow's name
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm')


def pictures_in(folder: Path, count: int) -> list[Path]:
    """Up to ``count`` pictures in a folder and below, evenly spaced in the order of their paths: of all classes.

    Raises:
        UsageError: When there is no folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UsageError(f'{folder}: no such folder.')
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f'{folder}: no picture in it ({", ".join(SUFFIXES)}).')
    return [found[index * len(found) // count] for index in range(count)] if len(found) > count else found


def find_pictures(cfg: Config, folder: str | Path | None = None, count: int = 4) -> list[Path]:
    """Paths of up to ``count`` pictures, of a folder and below, or of a config's test dataset.

    Raises:
        UsageError: When there is none.
    """
    if folder is not None:
        return pictures_in(Path(folder), count)
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    try:
        init_default_scope(scope_of(cfg))
        built = DATASETS.build(dataset)
        count = min(count, len(built))
        paths = [Path(built.get_data_info(index * len(built) // count)['img_path']) for index in range(count)]
        found = [path for path in paths if path.is_file()]
    except Exception as error:  # a dataset class may raise anything where its files are not there
        raise UsageError(f"the config's test dataset cannot be read ({str(error)[:200]}): {_GIVE}") from None
    if not found:
        raise UsageError(f"the config's test dataset has no pictures: {_GIVE}")
    return found


_GIVE = 'give pictures the model was made for with --pictures FOLDER.'


def read_pixels(path: Path, channels: int = 3) -> np.ndarray[Any, Any]:
    """A picture as uint8 [H, W, C]: grey, RGB or, as the toolboxes' loaders give it, BGRA.

    Raises:
        UsageError: When the file is no picture, or pictures have no such number of channels.
    """
    if channels not in MODES:
        raise UsageError(f'the network takes pictures of {channels} channels; picture files are read with {", ".join(map(str, MODES))}.')
    try:
        with Image.open(path) as file:
            pixels = np.array(ImageOps.exif_transpose(file).convert(MODES[channels])).reshape(*file.size[::-1], channels)
            return pixels[..., [2, 1, 0, 3]] if channels == 4 else pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f'{path}: cannot be read as a picture ({error}).') from None


def read_picture(path: Path, size: tuple[int, int], channels: int = 3) -> Tensor:
    """As :func:`read_pixels`, as uint8 [1, C, H, W] of ``size`` (height, width)."""
    pixels = Image.fromarray(read_pixels(path, channels).squeeze()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(pixels).reshape(*size, channels)).permute(2, 0, 1).unsqueeze(0).contiguous()
