"""PCA maps against scikit-learn, similarity maps against a loop, and marks on images."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov3_hf.visualization.features import (
    CORNERS,
    HEAT,
    cut_out,
    heat_colours,
    heat_map,
    mark_places,
    outline_cell,
    pca_basis,
    pca_map,
    place_colours,
    similarity_map,
    stretch,
    upscale,
)


def tokens(batch=3, patches=20, width=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, patches, width, generator=generator) * torch.linspace(3, 0.3, width) + 5


def test_directions_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    patch_tokens = tokens()
    expected = PCA(3, svd_solver="full").fit(patch_tokens.flatten(0, 1).double().numpy()).components_
    directions = pca_basis(patch_tokens).directions.T.numpy()
    signs = np.sign((directions * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(directions, signs * expected, atol=1e-9)


def test_sign_does_not_depend_on_the_solver():
    directions = pca_basis(tokens()).directions
    assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()


def test_map_is_the_projection_between_the_percentiles():
    patch_tokens = tokens()
    basis = pca_basis(patch_tokens)
    components = (patch_tokens.double() - basis.mean) @ basis.directions
    low, high = np.percentile(components.flatten(0, 1).numpy(), (2, 98), axis=0)
    expected = np.clip((components.numpy() - low) / (high - low), 0, 1).reshape(3, 4, 5, 3)
    picture = pca_map(patch_tokens, (4, 5))
    assert picture.dtype == np.uint8
    np.testing.assert_allclose(picture / 255, expected, atol=0.5 / 255 + 1e-9)
    # One image with the batch's basis has the colours it has in the batch.
    assert np.array_equal(pca_map(patch_tokens[1], (4, 5), basis), picture[1])
    assert not np.array_equal(pca_map(patch_tokens[1], (4, 5)), picture[1])


def test_equal_tokens_give_a_map_of_one_colour():
    assert (pca_map(torch.ones(6, 8), (2, 3)) == pca_map(torch.ones(6, 8), (2, 3))[0, 0]).all()


def test_similarity_is_the_cosine():
    patch_tokens = tokens()
    similarity = similarity_map(patch_tokens, patch_tokens[1, 7], (4, 5))
    a, b = patch_tokens[2, 13].double(), patch_tokens[1, 7].double()
    assert similarity.shape == (3, 4, 5)
    assert similarity[2, 2, 3].item() == pytest.approx((a @ b / a.norm() / b.norm()).item(), abs=1e-6)
    assert similarity[1, 1, 2].item() == pytest.approx(1, abs=1e-6)


def test_wrong_grids_are_refused():
    for draw in (lambda: pca_map(tokens(), (4, 4)), lambda: similarity_map(tokens(), tokens()[0, 0], (4, 4))):
        with pytest.raises(ValueError, match=r"grid: got \(4, 4\) for tokens of shape \(3, 20, 10\)"):
            draw()


def test_upscale_repeats_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    larger = upscale(image, 3)
    assert larger.shape == (6, 6, 3) and (larger[3:, :3] == image[1, 0]).all()


def test_heat_spans_the_values_it_is_given():
    values, grey = torch.tensor([[0.2, 0.6]]), Image.new("RGB", (80, 40), (100, 100, 100))
    for span, ends in (
        (None, (HEAT[0], HEAT[-1])),
        ((0.2, 1.0), (HEAT[0], HEAT[2])),
        ((0.6, 0.7), (HEAT[0], HEAT[0])),
    ):
        drawn = np.asarray(heat_map(grey, values, span, opacity=0.5)).astype(int)
        for column, colour in zip((0, -1), ends, strict=True):
            assert np.abs(drawn[:, column] - (colour + 100) / 2).max() <= 1
    assert not np.isnan(np.asarray(heat_map(grey, torch.zeros(2, 2)))).any()


def test_places_take_the_colours_of_the_corners_between_the_outermost():
    places = torch.tensor([[10.0, 30], [50, 30], [10, 90], [50, 90], [30, 60]])
    colours = place_colours(places)
    assert np.array_equal(colours[:4], CORNERS)
    assert np.array_equal(colours[4], CORNERS.mean(0).round())
    assert place_colours(places[:1]).tolist() == [CORNERS[0].tolist()]


def test_marks_lie_at_their_places():
    ground = Image.new("RGB", (120, 80), (90, 90, 90))
    red = np.array([[200, 0, 0]], dtype=np.uint8)
    dots = np.asarray(mark_places(ground, torch.tensor([[30.0, 20.0]]), red, radius=5)).astype(int)
    rows, columns = np.nonzero((dots - 90).any(2))
    assert (rows.mean(), columns.mean()) == pytest.approx((20, 30), abs=1) and np.ptp(rows) == pytest.approx(10, abs=2)
    assert dots[20, 30].tolist() == [200, 0, 0]
    ring = np.asarray(mark_places(ground, torch.tensor([[30.0, 20.0]])))
    assert ring[20, 20:40].max() > 240 and ring[20, 20:40].min() < 20 and (ring[40:] == 90).all()


def test_heat_runs_through_its_colours_and_no_further():
    levels = np.array([[-1, 0, 0.125], [0.25, 1, 2]])
    colours = heat_colours(levels)
    assert np.array_equal(colours[0, 0], HEAT[0]) and np.array_equal(colours[0, 1], HEAT[0])
    assert np.array_equal(colours[1, 0], HEAT[1]) and np.array_equal(colours[1, 2], HEAT[-1])
    np.testing.assert_allclose(colours[0, 2], (HEAT[0] + HEAT[1]) / 2)
    # Brighter is more, also in print.
    assert (np.diff(HEAT @ (0.299, 0.587, 0.114)) > 0).all()


def test_stretched_maps_keep_their_cells():
    cells = np.arange(18, dtype=np.float64).reshape(2, 3, 3) + 0.4
    picture = np.asarray(stretch(cells, (30, 10)))
    assert picture.shape == (10, 30, 3)
    assert (picture[:5, 20:] == cells[0, 2].round()).all() and (picture[5:, :10] == cells[1, 0].round()).all()


def test_the_frame_is_around_its_cell():
    ground = Image.new("RGB", (60, 40), (9, 9, 9))
    picture = np.asarray(outline_cell(ground, (4, 6), (1, 2)))
    changed = np.argwhere((picture != 9).any(-1))
    assert changed.min(0).tolist() == [7, 17] and changed.max(0).tolist() == [22, 32]
    assert (picture[11:19, 21:29] == 9).all() and (np.asarray(ground) == 9).all()


def test_cut_outs_darken_what_is_outside():
    mask = np.zeros((40, 60), dtype=bool)
    mask[:, 30:] = True
    picture = np.asarray(cut_out(Image.new("RGB", (60, 40), (200, 100, 40)), mask, np.array((1, 2, 3)), side=60))
    assert (picture[10:30, 40:50] == (200, 100, 40)).all() and (picture[10:30, 10:20] == (50, 25, 10)).all()
    assert (picture[0] == (1, 2, 3)).all() and (picture[:, -1] == (1, 2, 3)).all()
    assert cut_out(Image.new("RGB", (600, 400)), np.zeros((400, 600), dtype=bool), np.zeros(3), 60).size == (60, 40)
