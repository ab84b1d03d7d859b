"""Maps of values lie below their images, in one scale."""

import numpy as np
import torch

from dinov3_hf.visualization.features import HEAT
from dinov3_hf.visualization.heat import SIDE, heat_picture
from dinov3_hf.visualization.tiles import GAP


def test_maps_lie_below_their_images():
    images = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (20, 200)]
    maps = {"layer 1": [np.array([[0.0, 1.0], [0.5, 0.5]]), np.full((2, 2), 0.25)]}
    drawn = np.asarray(heat_picture(images, maps, "highest norm"))
    left = np.flatnonzero((drawn[GAP + SIDE // 2] == 20).all(1)).min()
    for place, value in enumerate((20, 200)):
        assert (drawn[GAP : GAP + SIDE, left + place * (SIDE + GAP) :][:, :SIDE] == value).all()
    first, second = (drawn[2 * GAP + SIDE :, left + place * (SIDE + GAP) :][:SIDE, :SIDE] for place in (0, 1))
    half = SIDE // 2
    assert (first[:half, :half] == HEAT[0]).all() and (first[:half, half:] == HEAT[-1]).all()
    assert (first[half:] == HEAT[2]).all() and (second == HEAT[1]).all()
    scale = drawn[3 * GAP + 2 * SIDE :]
    assert (scale == HEAT[0]).all(2).any() and (scale == HEAT[-1]).all(2).any()
