"""Answers are framed by whether they are right, each next to its query."""

import numpy as np
import torch
from matplotlib.colors import to_rgb

from dinov3_hf.visualization.answers import SIDE, answers_picture
from dinov3_hf.visualization.style import RIGHT, WRONG
from dinov3_hf.visualization.tiles import GAP, HEAD


def test_answers_are_framed_and_in_order():
    def image(value, height=32, width=32):
        return torch.full((3, height, width), value, dtype=torch.uint8)

    first = (image(10), [(image(20), True), (image(30), False), (image(40), False)])
    second = (image(50), [(image(60, 16), False), (image(70), True)])
    drawn = np.asarray(answers_picture([first, second]))
    for row, (query, answers) in enumerate((first, second)):
        centre, step = HEAD + row * (SIDE + GAP) + SIDE // 2, SIDE + GAP
        assert (drawn[centre, GAP : GAP + SIDE] == query[0, 0, 0].item()).all()
        for column, (answer, right) in enumerate(answers, start=1):
            left = GAP + column * step
            assert (drawn[centre, left + SIDE // 2] == answer[0, 0, 0].item()).all()
            for place in (left, left + SIDE - 1):
                assert np.abs(drawn[centre, place] / 255 - to_rgb(RIGHT if right else WRONG)).max() < 0.02
    # A flat image is as wide, and half as high.
    column = drawn[HEAD + SIDE + GAP : HEAD + 2 * SIDE + GAP, GAP + SIDE + GAP + SIDE // 2]
    assert (column == 60).all(1).sum() == SIDE // 2 - 4 and (column[:20] == 255).all()
