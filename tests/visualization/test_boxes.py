"""Boxes lie where they were found, and eigenvectors are red inside and blue outside."""

import numpy as np
import torch
from matplotlib.colors import to_rgb

from dinov3_hf.visualization.boxes import HEIGHT, INSIDE, OUTSIDE, FoundBox, boxes_picture, vector_colours
from dinov3_hf.visualization.style import FOUND, RIGHT
from dinov3_hf.visualization.tiles import GAP, HEAD


def test_boxes_are_drawn_inside_their_borders():
    image = torch.full((3, 50, 50), 120, dtype=torch.uint8)
    vector = np.array([[1.0, -1.0], [0.0, 0.0]])
    true, box = np.array([[0.1, 0.2, 0.5, 0.9]]), np.array([0.0, 0.0, 1.0, 1.0])
    drawn = np.asarray(boxes_picture([FoundBox(image, true, box, vector, True)]))[HEAD:, 2 * GAP :]
    for row, column, colour in (
        # Left, right, upper and lower side of the true box, then of the found one.
        *((100, 22, RIGHT), (100, 97, RIGHT), (42, 60, RIGHT), (177, 60, RIGHT)),
        *((100, 2, FOUND), (100, 197, FOUND), (2, 60, FOUND), (197, 60, FOUND)),
    ):
        assert np.abs(drawn[row, column] / 255 - to_rgb(colour)).max() < 0.02
    assert (drawn[100, 60] == 120).all() and (drawn[100, 150] == 120).all()
    right = drawn[:HEIGHT, HEIGHT + GAP : 2 * HEIGHT + GAP]
    assert tuple(right[50, 50]) == INSIDE and tuple(right[50, 150]) == OUTSIDE and (right[150, 100] == 255).all()


def test_weak_entries_are_pale_and_no_vector_is_white():
    colours = vector_colours(np.array([[4.0, 1.0, -1.0, 0.0]]))[0].astype(int)
    assert tuple(colours[0]) == INSIDE and (colours[3] == 255).all()
    # Half the way from white, by the root.
    assert np.abs(colours[1] - (255 + np.array(INSIDE)) / 2).max() <= 1
    assert np.abs(colours[2] - (255 + np.array(OUTSIDE)) / 2).max() <= 1
    assert (vector_colours(np.zeros((2, 2))) == 255).all()
