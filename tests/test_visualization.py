"""PCA maps against scikit-learn, similarity maps against a loop, and the grid of images."""

import numpy as np
import pytest
import torch

from dinov3_hf.visualization import image_grid, pca_basis, pca_map, similarity_map, upscale


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


def test_grid_places_every_image():
    # Coloured tiles: the labels are grey.
    colours = [np.full((4, 4, 3), (value, 0, 0), dtype=np.uint8) for value in (10, 90, 170)]
    picture = np.asarray(image_grid({"input": colours[:2], "after": colours[2:]}, cell=16, margin=4))
    for value, row, column in ((10, 0, 0), (90, 0, 1), (170, 1, 0)):
        where = np.argwhere((picture == (value, 0, 0)).all(-1))
        assert len(where) == 16 * 16
        left = where[:, 1].min() - np.argwhere((picture == (10, 0, 0)).all(-1))[:, 1].min()
        assert where[:, 0].min() == 4 + 20 * row and left == 20 * column
