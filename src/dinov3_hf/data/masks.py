"""Masks of class indices: reading, what their values mean, checking against the image, resizing."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..errors import Refused
from ..models.pixel_values_dinov3 import upright
from .columns import check_column, undecoded
from .pixels import check_turned_alike, read_size


if TYPE_CHECKING:
    from datasets import Dataset

IGNORE_INDEX = 255
# Messages list at most this many values.
SHOWN_VALUES = 8
MASK_MODES = ("1", "L", "P", "I", "I;16")


def read_mask(value: dict) -> torch.Tensor:
    """Read an undecoded mask (`bytes` or `path`) as class indices [H,W], upright; `Refused` for colour images."""
    with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]) as picture:
        if picture.mode not in MASK_MODES:
            raise Refused(f"mask: got an image of mode {picture.mode}, accepted: one channel of class indices")
        return torch.from_numpy(np.asarray(upright(picture)).astype(np.int64))


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


def check_mask_values(mask_values: Sequence[int], ignore_index: int | None = None) -> None:
    """Raise `Refused` unless `mask_values` is empty or 2 to 255 different values, `ignore_index` not among them."""
    listed = list(mask_values)
    if listed and not (2 <= len(set(listed)) == len(listed) <= IGNORE_INDEX):
        raise Refused(
            f"mask_values: got {listed[:SHOWN_VALUES]}, accepted: nothing, or 2 to {IGNORE_INDEX} different values, "
            "one a class"
        )
    if ignore_index in listed:
        raise Refused(f"ignore_index: got {ignore_index}, accepted: a value that is not a class in mask_values")


def map_values(
    mask: torch.Tensor, mask_values: Sequence[int], ignore_index: int | None, field: str = "mask_column"
) -> torch.Tensor:
    """Turn the stored values of a mask into classes: the value `mask_values[i]` becomes i.

    Of the other values, `ignore_index` becomes `IGNORE_INDEX`; the rest is refused. Without `mask_values`, the stored
    values are the classes.
    """
    if not len(mask_values):
        return mask
    values, classes = torch.tensor(mask_values, dtype=torch.long).sort()
    places = torch.searchsorted(values, mask.long().contiguous()).clamp(max=len(values) - 1)
    known, ignored = values[places] == mask, mask == ignore_index
    strange = mask[~(known | ignored)]
    if len(strange):
        listed = _listed(sorted(set(strange.tolist())))
        raise Refused(
            f"{field}: the masks hold {listed}, accepted: those of mask_values ({_listed(mask_values)}), and "
            f"ignore_index ({ignore_index})"
        )
    return torch.where(known, classes[places], IGNORE_INDEX)


def ignored_in_classes(mask_values: Sequence[int], ignore_index: int) -> int:
    """Return the value that ignored pixels have after `map_values`."""
    return IGNORE_INDEX if len(mask_values) else ignore_index


def count_values(rows: "Dataset", column: str) -> Counter[int]:
    """Count the pixels of each stored value in all masks of a column; masks that cannot be read are skipped."""
    counts: Counter[int] = Counter()
    for row in undecoded(rows.select_columns([column])):
        try:
            values, pixels = read_mask(row[column] or {"path": ""}).unique(return_counts=True)
        except Exception:
            # Pillow's plugins raise almost anything on broken files.
            continue
        counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
    return counts


def check_classes(
    counts: Mapping[int, int], column: str, split: str, mask_values: Sequence[int], ignore_index: int
) -> None:
    """Raise `Refused` if masks with `counts` pixels of each stored value have fewer than two classes that count.

    One class alone is what a constant answer predicts without an error: no metric can tell a model from it.
    """
    seen = sorted(value for value, pixels in counts.items() if pixels)
    classes = [value for value in seen if value in mask_values or (not len(mask_values) and value != ignore_index)]
    if len(classes) >= 2 or not seen:
        return
    reason = f"mask_column: the masks in {column!r} of {split} hold the value{'s' * (len(seen) > 1)} {_listed(seen)}"
    left = f"only class {classes[0]} is left" if classes else "no class is left"
    if ignore_index in seen and ignore_index not in mask_values:
        reason += f", where {ignore_index} is ignored (ignore_index={ignore_index})"
        if not len(mask_values):
            left += f" (if {ignore_index} is a class: --mask-values {' '.join(map(str, seen[:SHOWN_VALUES]))})"
    raise Refused(f"{reason}: {left}, and a constant answer scores 1, accepted: at least two classes")


def _listed(values: Sequence[int]) -> str:
    more = len(values) - SHOWN_VALUES
    return ", ".join(map(str, values[:SHOWN_VALUES])) + (f" and {more} more" if more > 0 else "")


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an integer mask [H,W] to `size` by the nearest pixel, with pixel centres aligned."""
    # In float, because integers have no kernel; in double, because labels may be large.
    return torch.nn.functional.interpolate(mask[None, None].double(), size=size, mode="nearest-exact")[0, 0].long()


def read_masks(
    rows: "Dataset", kept: list[int], image_column: str, mask_column: str, view: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield, for each row number in `kept`, its position there and the mask after `view`; skip unreadable masks.

    Raises `Refused` for a mask that does not fit its image, or may lie on it either way.
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
        check_turned_alike(row[image_column], row[mask_column], number, "mask_column")
        yield place, view(mask)
