"""Frames of a video: what was found in colour, what is true in outline."""

import warnings

import numpy as np
import torch

from dinov3_hf.visualization.classes import PALETTE
from dinov3_hf.visualization.tiles import GAP, HEAD
from dinov3_hf.visualization.tracks import PANEL_WIDTH, frame_picture


def test_found_objects_are_coloured_and_true_ones_outlined():
    image, true = torch.full((3, 18, 36), 60, dtype=torch.uint8), np.zeros((18, 36), dtype=np.int64)
    true[6:12, 9:27] = 1
    found = {"model": true, "raw_pixels": np.full((9, 18), 2)}
    drawn = np.asarray(frame_picture(image, true, found, "a, frame 1 of 2"))
    first, second = (
        drawn[HEAD : HEAD + 180, GAP + place * (PANEL_WIDTH + GAP) :][:, :PANEL_WIDTH] for place in (0, 1)
    )
    np.testing.assert_allclose(first[90, 180], 0.45 * 60 + 0.55 * PALETTE[1], atol=0.51)
    np.testing.assert_allclose(second[20, 20], 0.45 * 60 + 0.55 * PALETTE[2], atol=0.51)
    assert (first[20, 20] == 60).all()
    for panel in (first, second):
        white = np.argwhere((panel > 240).all(2))
        assert np.abs(white.min(0) - (60, 90)).max() <= 1 and np.abs(white.max(0) - (119, 269)).max() <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = np.asarray(frame_picture(image, np.ones((18, 36)), {"model": true}, "no outline"))
    assert not (full[HEAD : HEAD + 180, GAP : GAP + PANEL_WIDTH] > 240).all(2).any()
