"""Lines between matches start, end and are coloured as they should be."""

import numpy as np
import torch
from matplotlib.colors import to_rgb

from dinov3_hf.visualization.matches import HEIGHT, Matches, matches_picture
from dinov3_hf.visualization.style import RIGHT, WRONG
from dinov3_hf.visualization.tiles import GAP, HEAD


def test_lines_run_from_points_to_matches():
    # A tenth and a twentieth of the size that they are drawn in.
    source = torch.full((3, HEIGHT // 10, HEIGHT // 10), 90, dtype=torch.uint8)
    target = torch.full((3, HEIGHT // 20, HEIGHT // 20), 30, dtype=torch.uint8)
    points, found = torch.tensor([[5.0, 5.0], [5.0, 20.0]]), torch.tensor([[8.0, 2.5], [10.0, 10.0]])
    true = torch.tensor([[8.0, 2.5], [4.0, 7.0]])
    drawn = np.asarray(
        matches_picture([Matches(source, target, points, true, found, torch.tensor([True, False]))], "reach")
    )

    def colour(row, column):
        return drawn[HEAD + row, 2 * GAP + column] / 255

    # Both lines are level: green and red between the images and in them.
    for column in (100, HEIGHT + GAP // 2, HEIGHT + GAP + 60):
        assert np.abs(colour(50, column) - to_rgb(RIGHT)).max() < 0.25
        assert np.abs(colour(200, column) - to_rgb(WRONG)).max() < 0.25
    assert np.allclose(colour(50, 30), 90 / 255) and np.allclose(colour(50, HEIGHT + GAP + 190), 30 / 255)
    # A white ring in a black one around the true place that was missed, the image within it.
    ring = drawn[HEAD + 140, 2 * GAP + HEIGHT + GAP + 80 :][:12].mean(1)
    assert ring[0] == 30 and ring.max() > 150 and ring.min() < 15 and ring[-1] == 30
