"""Classes laid over images: their colours, what is ignored, and the legend."""

import numpy as np
import torch

from dinov3_hf.visualization.classes import IGNORED_COLOUR, PALETTE, class_colours, classes_picture, overlay
from dinov3_hf.visualization.tiles import GAP, HEAD


def test_the_background_stays_and_colours_come_again():
    image, labels = np.full((1, 3, 3), 100, dtype=np.uint8), np.array([[0, 1, len(PALETTE)]])
    mixed = overlay(image, labels, opacity=0.5)
    assert (mixed[0, 0] == 100).all() and np.abs(mixed[0, 1] - (100 + PALETTE[1].astype(float)) / 2).max() <= 0.5
    assert np.array_equal(mixed[0, 1], mixed[0, 2])
    assert (class_colours(np.array([0])) == 0).all()


def test_maps_are_laid_over_grey_images_and_named():
    # Red, whose grey is 85.
    image = torch.zeros(3, 12, 12, dtype=torch.uint8)
    image[0] = 255
    true, found = np.zeros((12, 12), dtype=np.uint8), np.full((6, 6), 2, dtype=np.uint8)
    true[:, 6:], true[6:, :6] = 1, 255
    names = ["background", "cat", "dog", "never"]
    picture = classes_picture(["true", "model"], [(image, [true, found])], names, ignore_index=255)
    drawn = np.asarray(picture)
    image, true, found = (drawn[HEAD : HEAD + 240, GAP + place * 248 :][:, :240] for place in range(3))
    assert (
        (image == (255, 0, 0)).all() and (true[:120, :120] == 85).all() and (true[120:, :120] == IGNORED_COLOUR).all()
    )
    for part, colour in ((true[:, 120:], PALETTE[1]), (found, PALETTE[2])):
        assert (part == part[0, 0]).all()
        np.testing.assert_allclose(part[0, 0], 0.45 * 85 + 0.55 * colour, atol=0.51)
    legend = drawn[HEAD + 240 + GAP :]
    for colour, is_named in ((PALETTE[1], True), (PALETTE[2], True), (PALETTE[3], False), (IGNORED_COLOUR, True)):
        assert ((legend == colour).all(2).sum() > 100) == is_named
