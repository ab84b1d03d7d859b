"""Decode any image that a data set may hold to RGB, or say in one line why it cannot be decoded."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import Refused
from ..models.pixel_values_dinov3 import BadImage, Range, check_range, orientation, rgb_pixels, stored_orientation


__all__ = ["MAX_PIXELS", "BadImage", "StoredImage", "check_turned_alike", "decode_image", "read_size"]

# Pillow itself refuses more: a file of a few kilobytes could fill the memory.
MAX_PIXELS = 178_956_970
# An image as a row holds it: encoded, as a path, as `datasets` stores either, or decoded; None if it is missing.
StoredImage = dict[str, bytes | str | None] | bytes | bytearray | memoryview | str | Image.Image | None


def stored_value(value: StoredImage) -> bytes | bytearray | memoryview | str | Image.Image | None:
    """Return what a row holds of an image: its encoded bytes, else its path; anything but a dictionary as it is."""
    if isinstance(value, dict):
        return value.get("bytes") if value.get("bytes") is not None else value.get("path")
    return value


def decode_image(value: StoredImage, max_pixels: int = MAX_PIXELS, value_range: Range | None = None) -> torch.Tensor:
    """Decode bytes, a `{"bytes", "path"}` dictionary or a PIL image to RGB uint8 [3, H, W].

    Transparent images are put on white; grey, CMYK and palettes are converted; EXIF and TIFF orientation is applied.
    `value_range` says which values are black and white in images of more than 8 bits a channel whose files do not say
    it: `pixel_values` has the rule. Raises `BadImage` for values whose range is not known, and for anything but a
    complete image of at most `max_pixels`.
    """
    check_range(value_range)
    value = stored_value(value)
    try:
        # Pillow warns of sizes it still accepts and of metadata it cannot read: noise, among millions of images.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = rgb_pixels(_open(value, max_pixels), value_range)
    except BadImage:
        raise
    except Exception as error:
        # Pillow's plugins raise almost anything on broken files (OSError, SyntaxError, struct.error, ...).
        raise BadImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    # Copied by numpy: torch takes many times as long to bring the channels to the front.
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def read_size(value: StoredImage) -> tuple[int, int]:
    """Return the height and width that `decode_image` would give, from the file's header alone; raises `BadImage`."""
    with _header(value) as image:
        return (image.width, image.height) if orientation(image) >= 5 else (image.height, image.width)


def check_turned_alike(image: StoredImage, label_map: StoredImage, row: int, field: str) -> None:
    """Raise `Refused` if a map of labels or depths may have been drawn on its image before it was turned upright.

    That is so where the image's EXIF or TIFF data turn or mirror it, the map's own say nothing, and its sides fit both
    ways; where they fit one way only, a map that does not fit is refused for its size. Raises `BadImage` for files
    that cannot be read.
    """
    with _header(image) as picture:
        number, is_square = stored_orientation(picture) or 1, abs(picture.height - picture.width) <= 1
    if number == 1 or (number >= 5 and not is_square):
        return
    with _header(label_map) as drawn:
        of_map = stored_orientation(drawn)
    if of_map is None:
        raise Refused(
            f"{field}: row {row} has an image of orientation {number} (EXIF) and a map without one, accepted: maps "
            "with the orientation that they were drawn in, or images stored upright"
        )


@contextmanager
def _header(value: StoredImage) -> Iterator[Image.Image]:
    """Open an image without decoding it; errors within become `BadImage`."""
    value = stored_value(value)
    if value is None:
        raise BadImage("got a NoneType, accepted: an encoded image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = io.BytesIO(value) if isinstance(value, bytes | bytearray | memoryview) else value
            yield source if isinstance(source, Image.Image) else Image.open(source)
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _open(value: StoredImage, max_pixels: int) -> Image.Image:
    if isinstance(value, str):
        value = Path(value).read_bytes()
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) == 0:
            raise BadImage("the file is empty")
        value = Image.open(io.BytesIO(value))
    if not isinstance(value, Image.Image):
        raise BadImage(f"got a {type(value).__name__}, accepted: an encoded image")
    if value.width * value.height > max_pixels:
        raise BadImage(f"{value.width}x{value.height} pixels, accepted: at most {max_pixels} in all")
    return value
