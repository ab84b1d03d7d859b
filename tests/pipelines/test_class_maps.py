"""A map of classes from windows over an image of any size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from torch.nn.functional import interpolate

from dinov3_hf.pipelines import class_maps as class_maps_module
from dinov3_hf.pipelines.class_embeddings import class_embeddings
from dinov3_hf.pipelines.class_maps import (
    best_class,
    class_maps,
    fit_image,
    segment,
    segment_logits,
    window_and_stride,
)

from ..samples import tiny_aligned


NAMES = ["background", "cat", "dog", "tree"]


@pytest.fixture(scope="module")
def aligned():
    return tiny_aligned(NAMES, spread=True, image_mean=[0.4, 0.5, 0.6])


def naive_logits(model, pixel_values, embeddings, window, stride):
    """Every pixel's patch scores summed up window by window, on the grid of patches; then one bilinear upsampling."""
    height, width = pixel_values.shape[-2:]
    total = torch.zeros(len(embeddings), height // 8, width // 8, dtype=torch.float64)
    count = torch.zeros(height // 8, width // 8, dtype=torch.float64)
    tops, y = set(), 0
    while True:
        tops.add(min(y, height - window))
        if y >= height - window:
            break
        y += stride
    for top in tops:
        left = 0
        while True:
            start = min(left, width - window)
            crop = pixel_values[:, :, top : top + window, start : start + window]
            with torch.no_grad():
                patches = model.get_patch_features(crop)[0].double()
            for index, patch in enumerate(patches):
                row, column = top // 8 + index // (window // 8), start // 8 + index % (window // 8)
                count[row, column] += 1
                for c, embedding in enumerate(embeddings.double()):
                    total[c, row, column] += patch @ embedding / patch.norm() / embedding.norm()
            if left >= width - window:
                break
            left += stride
    return interpolate((total / count)[None], (height, width), mode="bilinear")[0]


@pytest.fixture(scope="module")
def embeddings(aligned):
    return class_embeddings(aligned[0], aligned[1].tokenizer, NAMES, ["a {}"], part="patch")


@pytest.mark.parametrize(
    "side, stride, patches_at_once", [((32, 56), 16, 4096), ((40, 72), 24, 16), ((48, 32), 32, 40)]
)
def test_logits_equal_a_naive_loop(side, stride, patches_at_once, aligned, embeddings, monkeypatch):
    monkeypatch.setattr(class_maps_module, "PATCHES_AT_ONCE", patches_at_once)
    pixel_values = torch.randn(1, 3, *side, generator=torch.Generator().manual_seed(0))
    found = segment_logits(aligned[0], pixel_values, embeddings, window=32, stride=stride)
    expected = naive_logits(aligned[0], pixel_values, embeddings, 32, stride)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)
    assert (segment(found) == expected.argmax(0)).double().mean() > 0.999


class MeanColours(torch.nn.Module):
    """A "model" whose patch feature is the patch's mean colour: where a mask must lie, its image shows."""

    config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=8, image_size=32), projection_dim=6)
    device, dtype = torch.device("cpu"), torch.float32

    def get_patch_features(self, pixel_values):
        return torch.nn.functional.avg_pool2d(pixel_values, 8).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0)])
def test_masks_lie_where_the_image_shows_them(scales):
    truth = torch.tensor([[0, 1, 1, 2], [2, 2, 0, 1]]).repeat_interleave(32, 0).repeat_interleave(24, 1)
    image = torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1)[None].float()
    found = segment_logits(MeanColours(), image, torch.eye(3), 32, 24, scales)
    larger = segment_logits(MeanColours(), image, torch.eye(3), 32, 24, scales, size=(128, 192))
    doubled = truth.repeat_interleave(2, 0).repeat_interleave(2, 1)
    for logits, expected in ((found, truth), (larger, doubled)):
        # Bilinear upsampling rounds the corners where regions meet, and nothing else.
        wrong = (segment(logits) != expected).nonzero()
        corners = torch.cartesian_prod(torch.tensor([len(expected) / 2]), torch.arange(1, 4) * expected.shape[1] / 4)
        assert torch.cdist(wrong + 0.5, corners).amin(1).max() < 8 * len(expected) / 64


@pytest.mark.parametrize("window, stride", [(64, 40), (48, 8), (480, 480)])
def test_a_window_over_the_whole_image_is_one_pass(window, stride, aligned, embeddings):
    model, pixel_values = aligned[0], torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = torch.nn.functional.normalize(model.get_patch_features(pixel_values), dim=-1)
    whole = (patches @ embeddings.T)[0].T.unflatten(1, (5, 6))
    expected = interpolate(whole[None], (40, 48), mode="bilinear")[0]
    found = segment_logits(model, pixel_values, embeddings, window, stride)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_scales_are_averaged_and_logits_are_what_is_upsampled(aligned, embeddings):
    model, pixel_values = aligned[0], torch.randn(1, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    parts = []
    for scale, side in ((0.5, (24, 16)), (1.0, (48, 40)), (1.5, (72, 64))):  # patches of 8: 20 and 60 are rounded
        image = interpolate(pixel_values, side, mode="bilinear", antialias=True) if scale != 1 else pixel_values
        grid = segment_logits(model, image, embeddings, 32, 16, size=(side[0] // 8, side[1] // 8))
        parts.append(interpolate(grid[None], (90, 70), mode="bilinear")[0])
    found = segment_logits(model, pixel_values, embeddings, 32, 16, scales=(0.5, 1.0, 1.5), size=(90, 70))
    torch.testing.assert_close(found, sum(parts) / 3, atol=1e-6, rtol=0)
    assert found.shape == (4, 90, 70)


def test_argmax_of_a_stream_and_threshold(aligned, embeddings):
    model, pixel_values = aligned[0], torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    logits = segment_logits(model, pixel_values, embeddings)
    best, classes, margin = best_class(class_maps(model, pixel_values, embeddings))
    assert torch.equal(best, logits.amax(0)) and torch.equal(classes, logits.argmax(0))
    torch.testing.assert_close(margin, logits.amax(0) - logits.mean(0))
    assert torch.equal(best_class(logits[:1])[2], logits[0])
    threshold = margin.median().item()
    found = segment(logits, threshold)
    assert (
        torch.equal(found, torch.where(margin < threshold, -1, classes)) and 0.3 < (found == -1).double().mean() < 0.6
    )
    assert segment(torch.full((2, 3, 3), torch.nan), 0.0).eq(-1).all()


def test_default_windows(aligned):
    assert window_and_stride(aligned[0]) == (32, 24)  # 2/3 of 4 patches, rounded to 3
    assert window_and_stride(aligned[0], 48) == (48, 32) and window_and_stride(aligned[0], 8) == (8, 8)


@pytest.mark.parametrize("kind", ["tensor", "pil"])
@pytest.mark.parametrize(
    "size, expected", [((20, 30), (32, 48)), ((33, 100), (32, 96)), ((70, 50), (72, 48)), ((500, 3), (5336, 32))]
)
def test_images_keep_their_proportions(size, expected, kind, aligned):
    picture = PilImage.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    image = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) if kind == "tensor" else picture
    found = fit_image(image, aligned[1].image_processor, 32, 8)
    height, width = expected
    by_hand = aligned[1].image_processor(picture, size={"height": height, "width": width}, return_tensors="pt")
    assert found.shape == (1, 3, height, width) and torch.equal(found, by_hand["pixel_values"])


def test_whole_windows_add_their_own_cosine(aligned, embeddings):
    model, generator = aligned[0], torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, 32, 32, generator=generator)
    whole = torch.nn.functional.normalize(torch.randn(4, model.config.projection_dim, generator=generator), dim=-1)
    plain = segment_logits(model, pixel_values, embeddings, 32, 32)
    with torch.inference_mode():
        image = torch.nn.functional.normalize(model.get_image_features(pixel_values), dim=-1)[0]
    found = segment_logits(model, pixel_values, embeddings, 32, 32, image_embeddings=whole)
    torch.testing.assert_close(found, plain + (whole @ image)[:, None, None], atol=1e-5, rtol=0)
