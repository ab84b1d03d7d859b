"""Decode any image that a data set may hold to RGB, or say in one line why it cannot be decoded."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps


# Pillow itself refuses more: a file of a few kilobytes could fill the memory.
MAX_PIXELS = 178_956_970
# An image as a row holds it: encoded, as a path, as `datasets` stores either, or decoded; None if it is missing.
StoredImage = dict[str, bytes | str | None] | bytes | bytearray | memoryview | str | Image.Image | None


class BadImage(ValueError):
    """An image that cannot be decoded."""


def decode_image(value: StoredImage, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decode bytes, a `{"bytes", "path"}` dictionary or a PIL image to RGB uint8 [3, H, W].

    Transparent images are put on white; grey, CMYK and palettes are converted; 16-bit images are scaled to 8 bits;
    EXIF rotation is applied. Raises `BadImage` for anything but a complete image of at most `max_pixels`.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    try:
        # Pillow warns of sizes it still accepts and of metadata it cannot read: noise, among millions of images.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = np.asarray(to_rgb(_upright(_open(value, max_pixels))))
    except BadImage:
        raise
    except Exception as error:
        # Pillow's plugins raise almost anything on broken files (OSError, SyntaxError, struct.error, ...).
        raise BadImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    # Copied by numpy: torch takes many times as long to bring the channels to the front.
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def read_size(value: StoredImage) -> tuple[int, int]:
    """Return the height and width that `decode_image` would give, from the file's header alone; raises `BadImage`."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise BadImage("got a NoneType, accepted: an encoded image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = io.BytesIO(value) if isinstance(value, bytes | bytearray | memoryview) else value
            image = source if isinstance(source, Image.Image) else Image.open(source)
            try:
                is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            except Exception:
                is_turned = False
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    return (image.width, image.height) if is_turned else (image.height, image.width)


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


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation; an image with broken EXIF data stays as it is."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow clips these at 255 instead of scaling them.
        values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
        full = 65535.0 if image.mode != "F" else max(float(values.max(initial=0)), 1.0)
        return Image.fromarray((values.clip(0, full) * (255.0 / full)).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
