"""Reading picture files to their end."""

import os
import struct
from contextlib import suppress
from pathlib import Path

import cv2
from PIL import ExifTags, Image, UnidentifiedImageError

from orepa_mm.errors import UsageError


def read_picture(path: Path, kind: str, scaled: bool = False) -> tuple[Image.Image | None, tuple[int, int] | None]:
    """The decoded picture, called ``kind`` in messages, with its width and height; None where only cv2 knows the format.

    cv2, which the toolboxes decode with, fills the rest of a file that is cut short with grey and says nothing. ``scaled``: a smaller
    picture will do, if that is faster.
    """
    most = int(os.environ.get('OPENCV_IO_MAX_IMAGE_PIXELS', 2**30))
    try:
        with Image.open(path) as picture:
            size = picture.size
            if size[0] * size[1] <= most:
                if scaled:
                    picture.draft(None, (1, 1))  # a JPEG is then read to its end, but not computed in full
                picture.load()
                return picture, size
    except (OSError, SyntaxError, ValueError) as error:
        if scaled and isinstance(error, UnidentifiedImageError) and cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None:
            return None, None
        raise UsageError(f'{path}: cannot be read as a {kind} ({error}); copy it again, or take it out of the dataset.') from None
    remedy = 'cut it into tiles, or set OPENCV_IO_MAX_IMAGE_PIXELS in the environment.'
    raise UsageError(f'{path}: has {size[0]} x {size[1]} pixels, and OpenCV opens {most / 1e6:.0f} millions: {remedy}')


def is_turned(picture: Image.Image) -> bool:
    """Whether a photograph says that it was taken upright and its width and height are to be exchanged, as cv2 does."""
    if picture.format not in ('JPEG', 'MPO'):
        return False
    with suppress(SyntaxError, ValueError, struct.error):  # broken metadata turn nothing
        return picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
    return False
