"""Boxes around objects: from a column, or from masks."""

from collections.abc import Collection

import numpy as np
import torch
from torchvision.ops import box_convert, masks_to_boxes

from ..errors import Refused


# What the class of an object is called in a column of objects.
CATEGORY_NAMES = ("category", "categories", "label", "labels", "category_id")


def object_boxes(mask: torch.Tensor, not_objects: Collection[int | None] = (0,)) -> tuple[list[int], torch.Tensor]:
    """Return the values of a mask [H,W] that are objects, and their boxes [K,4] (x0, y0, x1, y1 in pixels), fp64."""
    values = [value for value in mask.unique().tolist() if value not in not_objects]
    if not values:
        return [], torch.zeros(0, 4, dtype=torch.float64)
    boxes = masks_to_boxes(mask == torch.tensor(values)[:, None, None]).double()
    # The last pixel is inside.
    return values, boxes + torch.tensor([0, 0, 1, 1])


def mask_boxes(mask: torch.Tensor, ignore_index: int | None = None) -> np.ndarray:
    """Box [K,4] (x0, y0, x1, y1 in 0..1 of the sides) of each value of a mask [H,W], 0 and `ignore_index` left out."""
    height, width = mask.shape
    return object_boxes(mask, (0, ignore_index))[1].numpy() / (width, height, width, height)


def boxes_of_masks(instances: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return boxes [n,4] (x, y, width, height) and classes of objects k in `instances` [H,W]; `mask` holds 1 + class."""
    values, boxes = object_boxes(instances)
    return box_convert(boxes, "xyxy", "xywh").float(), [int(mask[instances == value][0]) - 1 for value in values]


def read_boxes(values: list, sizes: list[tuple[int, int] | None]) -> list[np.ndarray]:
    """Return boxes in pixels, [x0, y0, x1, y1] or a list of them a row, as [K,4] in 0..1 of images of `sizes` (H, W).

    Raises `Refused` for what is no such box, and for empty ones.
    """
    found = []
    for row, (value, size) in enumerate(zip(values, sizes, strict=True)):
        try:
            boxes = np.array(value if value is not None else [], dtype=float).reshape(-1, 4)
        except (TypeError, ValueError):
            boxes = np.zeros((1, 4))
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            accepted = "a list of [x0, y0, x1, y1] in pixels, x0 < x1 and y0 < y1"
            raise Refused(f"box_column: row {row} has {str(value)[:60]}, accepted: {accepted}")
        height, width = size or (1, 1)
        found.append(boxes / (width, height, width, height))
    return found


def declared_names(rows, column: str) -> list[str]:
    """Return the class names that a column of objects declares, none where it does not."""
    feature = (rows.features or {}).get(column)
    inner = getattr(feature, "feature", feature)
    for name in CATEGORY_NAMES if isinstance(inner, dict) else ():
        if name in inner:
            return list(getattr(getattr(inner[name], "feature", inner[name]), "names", None) or [])
    return []
