"""Boxes of masks and of columns."""

import pytest
import torch

from dinov3_hf.data.boxes import mask_boxes, read_boxes


def test_boxes_of_masks_and_columns():
    mask = torch.zeros(8, 16, dtype=torch.long)
    mask[1:3, 4:8], mask[5, 0], mask[7, 15] = 3, 1, 255
    assert mask_boxes(mask, ignore_index=255).tolist() == [[0, 5 / 8, 1 / 16, 6 / 8], [4 / 16, 1 / 8, 8 / 16, 3 / 8]]
    assert len(mask_boxes(mask, ignore_index=3)) == 2 and mask_boxes(torch.zeros(4, 4)).shape == (0, 4)
    found = read_boxes([[[4, 1, 8, 3]], [0, 5, 1, 6], None, []], [(8, 16)] * 4)
    assert [boxes.tolist() for boxes in found] == [[[0.25, 0.125, 0.5, 0.375]], [[0, 0.625, 0.0625, 0.75]], [], []]
    for wrong in ([[4, 1, 4, 3]], [1, 2, 3], "box", [[0, 0, float("nan"), 1]]):
        with pytest.raises(ValueError, match=r"box_column: row 1 has .*, accepted: a list of \[x0, y0, x1, y1\]"):
            read_boxes([None, wrong], [(8, 16)] * 2)
