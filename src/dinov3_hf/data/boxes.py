"""Boxes around objects: from a column, or from masks."""

import numpy as np
import torch


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N,4] and [M,4] (x0, y0, x1, y1), none of them empty; returns [N,M]."""
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(boxes[:, None, :2], others[None, :, :2])
    both = sides.clip(min=0).prod(2)
    areas = [(of[:, 2:] - of[:, :2]).prod(1) for of in (boxes, others)]
    return both / (areas[0][:, None] + areas[1][None] - both)


def mask_boxes(mask: torch.Tensor, ignore_index: int | None = None) -> np.ndarray:
    """Box [K,4] (x0, y0, x1, y1 in 0..1 of the sides) of each value of a mask [H,W], 0 and `ignore_index` left out."""
    height, width = mask.shape
    boxes = []
    for value in mask.unique().tolist():
        if value not in (0, ignore_index):
            rows, columns = (mask == value).nonzero().unbind(1)
            box = (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
            boxes.append([side.item() for side in box])
    return np.array(boxes).reshape(-1, 4)


def read_boxes(values: list, sizes: list[tuple[int, int] | None]) -> list[np.ndarray]:
    """Return boxes in pixels, [x0, y0, x1, y1] or a list of them a row, as [K,4] in 0..1 of images of `sizes` (H, W).

    Raises ValueError for what is no such box, and for empty ones.
    """
    found = []
    for row, (value, size) in enumerate(zip(values, sizes, strict=True)):
        try:
            boxes = np.array(value if value is not None else [], dtype=float).reshape(-1, 4)
        except (TypeError, ValueError):
            boxes = np.zeros((1, 4))
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            accepted = "a list of [x0, y0, x1, y1] in pixels, x0 < x1 and y0 < y1"
            raise ValueError(f"box_column: row {row} has {str(value)[:60]}, accepted: {accepted}")
        height, width = size or (1, 1)
        found.append(boxes / (width, height, width, height))
    return found
