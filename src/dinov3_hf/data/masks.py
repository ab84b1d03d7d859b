"""Masks of class indices: reading, checking against the image, resizing."""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..errors import Refused
from .columns import check_column, undecoded
from .pixels import read_size


if TYPE_CHECKING:
    from datasets import Dataset

IGNORE_INDEX = 255
MASK_MODES = ("1", "L", "P", "I", "I;16")


def read_mask(value: dict) -> torch.Tensor:
    """Read an undecoded mask (`bytes` or `path`) as class indices [H,W]; `Refused` for colour images."""
    with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]) as picture:
        if picture.mode not in MASK_MODES:
            raise Refused(f"mask: got an image of mode {picture.mode}, accepted: one channel of class indices")
        return torch.from_numpy(np.asarray(picture).astype(np.int64))


def check_mask_column(rows: "Dataset", column: str, field: str = "mask_column") -> None:
    """Raise `Refused` if a data set has no such column, or if it does not hold one-channel images."""
    check_column(rows, column, field)
    if type(rows.features[column]).__name__ != "Image":
        raise Refused(f"{field}: got {column!r}, accepted: a column of images with class indices as pixels")
    first = undecoded(rows.select_columns([column]))[0][column] if len(rows) else None
    if first is not None:
        # Colour pictures are refused here: later they would only count as rows that cannot be read.
        try:
            read_mask(first)
        except OSError:
            pass


def check_mask_fits(mask: torch.Tensor, size: tuple[int, int], row: int, field: str = "mask_column") -> None:
    """Raise `Refused` if a mask [H,W] does not fit its image of `size` (height, width).

    A mask of another resolution fits if its sides have the image's ratio, to a pixel.
    """
    height, width = mask.shape
    if abs(height * size[1] - width * size[0]) > max(height, width, *size):
        raise Refused(
            f"{field}: row {row} has a mask of {width}x{height} for an image of {size[1]}x{size[0]}, accepted: the "
            "image's size, or another of the same ratio"
        )


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an integer mask [H,W] to `size` by the nearest pixel, with pixel centres aligned."""
    # In float, because integers have no kernel; in double, because labels may be large.
    return torch.nn.functional.interpolate(mask[None, None].double(), size=size, mode="nearest-exact")[0, 0].long()


def read_masks(
    rows: "Dataset", kept: list[int], image_column: str, mask_column: str, view: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield, for each row number in `kept`, its position there and the mask after `view`; skip unreadable masks.

    Raises `Refused` for a mask that does not fit its image.
    """
    rows = undecoded(rows.select_columns(list({image_column, mask_column})))
    for place, number in enumerate(kept):
        row = rows[number]
        try:
            mask = read_mask(row[mask_column] or {"path": ""})
        except Exception:
            # Pillow's plugins raise almost anything on broken files.
            continue
        check_mask_fits(mask, read_size(row[image_column]), number)
        yield place, view(mask)
