"""Tiles lie where they belong, pixel by pixel, and are resized as they should be."""

import numpy as np
import torch
from PIL import Image

from dinov3_hf.visualization.style import to_image
from dinov3_hf.visualization.tiles import (
    GAP,
    HEAD,
    LEAST_WIDTH,
    MOST_WIDTH,
    fit_height,
    fit_image,
    fit_map,
    lay_pairs,
    lay_tiles,
    tile_size,
)


def tile(seed, height=40, width=200):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tiles_keep_their_pixels_and_places():
    rows = [[tile(0), tile(1), tile(2)], [tile(3), tile(4, 20, 100)]]
    drawing = lay_tiles(rows, ["a", "b", "c"], below=30)
    drawn = np.asarray(to_image(drawing))
    assert drawn.shape == (HEAD + 2 * (40 + GAP) + 30, GAP + 3 * (200 + GAP), 3) and len(drawing.axes) == 5
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            # Smaller ones are centred in their column.
            height, width = image.shape[:2]
            top = HEAD + row * (40 + GAP) + (40 - height) // 2
            left = GAP + column * (200 + GAP) + (200 - width) // 2
            assert np.array_equal(drawn[top : top + height, left : left + width], image)


def test_labels_stand_left_of_their_rows_and_titles_above():
    bare, labelled = (to_image(lay_tiles([[tile(0)] * 3], labels=labels)) for labels in ((), ["a label"]))
    assert labelled.width > bare.width + 40 and labelled.height == bare.height
    titled = np.asarray(to_image(lay_tiles([[tile(0)] * 3], ["a", "b", "c"])))
    ink = np.flatnonzero((titled[:HEAD] < 128).all(2).any(0))
    assert [int(place) for place in np.unique((ink - GAP) // (200 + GAP))] == [0, 1, 2]
    assert lay_tiles([[tile(0, 40, 40)]]).bbox.width == LEAST_WIDTH


def test_pairs_lie_two_a_line_where_there_is_room():
    pairs = [(tile(0), tile(1)), (tile(2), tile(3)), (tile(4), tile(5))]
    drawing = lay_pairs(pairs, ["first", "second", "third"], "caption")
    drawn = np.asarray(to_image(drawing))
    step = 2 * GAP + 400 + GAP
    for index, images in enumerate(pairs):
        top, left = HEAD + index // 2 * (HEAD + 40 + GAP), 2 * GAP + index % 2 * step
        for image in images:
            assert np.array_equal(drawn[top : top + 40, left : left + 200], image)
            left += 200 + GAP
    wide = lay_pairs([(tile(0, 40, 400), tile(1, 40, 400))] * 2, ["a", "b"], "caption")
    assert wide.bbox.width < MOST_WIDTH < 2 * 808 and wide.bbox.height > 2 * (HEAD + 40)


def test_maps_are_resized_by_the_nearest_pixel():
    values = np.arange(6).reshape(2, 3)
    assert np.array_equal(fit_map(values, (4, 6)), values.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(fit_map(values.repeat(3, 0).repeat(3, 1), (2, 3)), values)
    random = np.random.default_rng(0).integers(0, 9, (37, 53))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(random)[None, None].double(), (20, 90), mode="nearest-exact"
    )
    assert np.array_equal(fit_map(random, (20, 90)), expected[0, 0].numpy())
    assert fit_map(tile(0), (7, 5)).shape == (7, 5, 3)


def test_images_keep_their_ratio():
    assert tile_size(120, 60) == (240, 120) and tile_size(3, 3000) == (1, 240)
    image = torch.from_numpy(tile(0)).permute(2, 0, 1)
    assert fit_height(image, 100).shape == (100, 500, 3)
    expected = Image.fromarray(tile(0)).resize((50, 10), Image.Resampling.LANCZOS)
    assert np.array_equal(fit_image(image, (10, 50)), np.asarray(expected))
