"""Depths: bright is near, and all maps share the scale of the true ones."""

import numpy as np
import torch

from dinov3_hf.visualization.depths import COLOURS, GREY, depth_colours, depths_picture
from dinov3_hf.visualization.tiles import GAP, HEAD


def test_colours_grow_lighter_the_nearer_and_unknown_is_grey():
    depths = np.linspace(1, 5, 20)[None]
    colours = depth_colours(depths, 1.0, 5.0)
    lightness = colours[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) < 0).all()
    assert depth_colours(np.array([[0.0, 9.0, 5.0]]), 1.0, 5.0)[0].tolist() == [
        [150] * 3,
        *[colours[0, -1].tolist()] * 2,
    ]


def test_maps_share_the_scale_of_the_true_one():
    image, true = torch.full((3, 12, 12), 77, dtype=torch.uint8), np.full((12, 12), 2.0)
    true[6:], true[0, 0] = 4.0, 0.0
    found = np.full((24, 24), 9.0)
    drawn = np.asarray(depths_picture(["true", "model"], [(image, [true, found])]))
    image, true, found = (drawn[HEAD : HEAD + 240, GAP + place * 248 :][:, :240] for place in range(3))
    assert (image == 77).all()
    assert (true[:20, :20] == GREY).all()
    assert (true[:120, 20:] == COLOURS[-1]).all() and (true[120:] == COLOURS[0]).all()
    # Beyond the farthest true depth.
    assert (found == COLOURS[0]).all()
    # The scale runs from the nearest to the farthest.
    scale = drawn[HEAD + 240 + GAP :]
    places = [np.argwhere((scale == colour).all(2))[:, 1] for colour in COLOURS[[-1, 0]]]
    assert places[1].mean() - places[0].mean() > 200
