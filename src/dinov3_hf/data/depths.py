"""Depth maps: how stored values become metres."""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import Refused
from ..models.pixel_values_dinov3 import upright
from .columns import check_column, undecoded


if TYPE_CHECKING:
    from datasets import Dataset

DEPTH_MODES = ("I;16", "I;16L", "I;16B", "I", "F")


def check_depth_column(rows: "Dataset", column: str) -> None:
    """Raise `Refused` if a data set has no such column, or if it does not hold depth maps."""
    check_column(rows, column, "depth_column")
    if type(rows.features[column]).__name__ != "Image":
        raise Refused(f"depth_column: got {column!r}, accepted: a column of images with depths as pixels")
    value = undecoded(rows.select_columns([column]))[0][column]
    try:
        # Colour pictures are refused here: later they would only count as maps that cannot be read.
        read_stored(value or {"path": ""})
    except OSError:
        pass


def read_stored(value: dict) -> np.ndarray:
    """Read an undecoded depth map (`bytes` or `path`) in stored units [H,W], upright; `Refused` for other images."""
    with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]) as picture:
        if picture.mode not in DEPTH_MODES:
            raise Refused(
                f"depth_column: got an image of mode {picture.mode}, accepted: one channel of 16 or 32 bits "
                f"({', '.join(DEPTH_MODES)})"
            )
        values = np.asarray(upright(picture))
    return values.astype(values.dtype.newbyteorder("="))


def read_depth(value: dict, depth_unit: float, min_depth: float, max_depth: float) -> np.ndarray:
    """Read a depth map [H,W] in stored units, with 0 for depths that are unknown or outside the range (metres)."""
    stored = read_stored(value)
    metres = in_metres(stored, depth_unit)
    return np.where((metres >= min_depth) & (metres <= max_depth), stored, 0).astype(stored.dtype)


def in_metres(stored: np.ndarray, depth_unit: float) -> np.ndarray:
    """Convert stored units to metres, fp64."""
    return stored.astype(np.float64) * depth_unit
