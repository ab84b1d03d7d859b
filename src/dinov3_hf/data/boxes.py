"""Boxes around objects: from a column, or from masks."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.ops import box_convert, masks_to_boxes

from ..errors import Refused


if TYPE_CHECKING:
    from datasets import Dataset

# Keys under which a column of objects may hold their classes.
CATEGORY_NAMES = ("category", "categories", "label", "labels", "category_id")


def object_boxes(mask: torch.Tensor, not_objects: Collection[int | None] = (0,)) -> tuple[list[int], torch.Tensor]:
    """Return the values of a mask [H,W] that are objects, and their boxes [K,4] (x0, y0, x1, y1 in pixels), fp64."""
    values = [value for value in mask.unique().tolist() if value not in not_objects]
    if not values:
        return [], torch.zeros(0, 4, dtype=torch.float64)
    boxes = masks_to_boxes(mask == torch.tensor(values)[:, None, None]).double()
    # The last pixel belongs to the box.
    return values, boxes + torch.tensor([0, 0, 1, 1])


def mask_boxes(mask: torch.Tensor, ignore_index: int | None = None) -> np.ndarray:
    """Return the box [K,4] (x0, y0, x1, y1 as fractions of the sides) of each value of a mask [H,W].

    0 and `ignore_index` are no objects.
    """
    height, width = mask.shape
    return object_boxes(mask, (0, ignore_index))[1].numpy() / (width, height, width, height)


def boxes_of_masks(instances: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return boxes [n,4] (x, y, width, height) and classes of the objects in `instances` [H,W].

    `mask` [H,W] holds 1 + class.
    """
    values, boxes = object_boxes(instances)
    return box_convert(boxes, "xyxy", "xywh").float(), [int(mask[instances == value][0]) - 1 for value in values]


def read_boxes(values: list, sizes: list[tuple[int, int] | None]) -> list[np.ndarray]:
    """Convert each row's boxes from pixels to fractions of its image's size (H, W), [K,4].

    A row has one box [x0, y0, x1, y1] or a list of them. Raises `Refused` for anything else, and for empty boxes.
    """
    relative = []
    for row, (value, size) in enumerate(zip(values, sizes, strict=True)):
        try:
            boxes = np.array(value if value is not None else [], dtype=float).reshape(-1, 4)
        except (TypeError, ValueError):
            boxes = np.zeros((1, 4))
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            accepted = "a list of [x0, y0, x1, y1] in pixels, x0 < x1 and y0 < y1"
            raise Refused(f"box_column: row {row} has {str(value)[:60]}, accepted: {accepted}")
        height, width = size or (1, 1)
        relative.append(boxes / (width, height, width, height))
    return relative


def declared_names(rows: "Dataset", column: str) -> list[str]:
    """Return the class names that a column of objects declares; an empty list if it declares none."""
    feature = (rows.features or {}).get(column)
    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, dict):
        return []
    for name in CATEGORY_NAMES:
        if name in inner:
            return list(getattr(getattr(inner[name], "feature", inner[name]), "names", None) or [])
    return []
