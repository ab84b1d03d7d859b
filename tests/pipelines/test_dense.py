"""Dense maps of images of any size, against tokens put in place one by one."""

import pytest
import torch
from transformers import AutoModel, DINOv3ViTImageProcessor

from dinov3_hf import Dinov3Backbone, Dinov3Config, Dinov3ForImageClassification, Dinov3Model
from dinov3_hf.checkpoints import tiny_checkpoint
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.pipelines.dense import dense_features


CONFIG = Dinov3Config(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    patch_size=8,
    image_size=32,
    layerscale_value=0.5,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Dinov3Model(CONFIG).eval()


def naive_map(model, image, window, stride):
    """Mean of the tokens that fall on each cell, window by window; image [3,H,W] of whole patches."""
    _, height, width = image.shape
    tops, lefts = ([0], [0])
    for starts, length in ((tops, height), (lefts, width)):
        while starts[-1] + window < length:
            starts.append(min(starts[-1] + stride, length - window))
    cells = [[[] for _ in range(width // 8)] for _ in range(height // 8)]
    for top in tops:
        for left in lefts:
            part = image[None, :, top : top + window, left : left + window]
            tokens = model(part).last_hidden_state[0, 1 + CONFIG.num_register_tokens :]
            for index, token in enumerate(tokens):
                row, column = divmod(index, part.shape[3] // 8)
                cells[top // 8 + row][left // 8 + column].append(token)
    means = [torch.stack([torch.stack(cell).mean(0) for cell in row], dim=1) for row in cells]
    return torch.stack(means, dim=1)


@torch.inference_mode()
def test_map_holds_each_patch_token_in_its_place(model):
    images = torch.randn(2, 3, 24, 40)
    found, tokens = dense_features(model, images), model(images).patch_tokens
    assert found.shape == (2, 24, 3, 5)
    for row in range(3):
        for column in range(5):
            assert torch.equal(found[:, :, row, column], tokens[:, row * 5 + column])


@pytest.mark.parametrize(("window", "stride"), [(24, 8), (24, 16), (32, 32), (16, None), (64, None)])
@torch.inference_mode()
def test_windows_are_averaged_as_a_naive_loop_does(model, window, stride):
    image = torch.randn(3, 40, 56)
    expected = naive_map(model, image, window, stride or max(8, window * 2 // 3 // 8 * 8))
    found = dense_features(model, image[None], window, stride)[0]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@torch.inference_mode()
def test_images_of_different_sizes_give_a_list_of_maps(model):
    images = [torch.randn(3, height, width) for height, width in ((32, 32), (37, 19), (3, 60))]
    maps = dense_features(model, images)
    assert [tuple(found.shape) for found in maps] == [(24, 4, 4), (24, 5, 2), (24, 1, 8)]
    resized = torch.nn.functional.interpolate(images[1][None], (40, 16), mode="bilinear", antialias=True)
    assert torch.equal(maps[1], dense_features(model, resized)[0])
    assert torch.equal(maps[0], dense_features(model, images[0][None])[0])


@torch.inference_mode()
def test_map_is_aligned_with_the_image_whatever_its_size():
    """A network that averages a patch's pixels: an image that grows linearly gives a map on the same line."""

    class Mean(Dinov3Model):
        def forward(self, pixel_values):
            means = torch.nn.functional.avg_pool2d(pixel_values, 8)
            return type("Output", (), {"patch_tokens": means.flatten(2).transpose(1, 2)})

    height, width = 44, 61
    columns = (torch.arange(width) + 0.5) / width
    image = columns.expand(3, height, width)
    found = dense_features(Mean(CONFIG), [image])[0]
    assert found.shape == (3, 6, 8)
    centres = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(found[0], centres.expand(6, 8), atol=1e-3, rtol=0)
    enlarged = dense_features(Mean(CONFIG), [image], upsample="image")[0]
    assert enlarged.shape == (3, height, width)
    # Beyond the centres of the outermost cells there is nothing to interpolate with.
    inside = slice(5, width - 5)
    torch.testing.assert_close(enlarged[:, :, inside], image[:, :, inside], atol=2e-3, rtol=0)
    assert dense_features(Mean(CONFIG), image[None], upsample=(9, 10)).shape == (1, 3, 9, 10)


@torch.inference_mode()
def test_heads_are_looked_through_and_types_kept(model):
    torch.manual_seed(1)
    classifier, images = Dinov3ForImageClassification(CONFIG).eval(), torch.randn(1, 3, 16, 24)
    assert torch.equal(dense_features(classifier, images), dense_features(classifier.dinov3, images))
    half = Dinov3Model(CONFIG).eval().bfloat16()
    assert dense_features(half, images).dtype == torch.bfloat16
    with torch.enable_grad():
        assert not dense_features(model, images).requires_grad


@torch.inference_mode()
def test_a_processor_that_does_not_resize_gives_what_is_asked_for():
    model = Dinov3Model.from_pretrained(tiny_checkpoint())
    processor = DINOv3ViTImageProcessor.from_pretrained(tiny_checkpoint())
    scenes = load_scenes("test", 2, image_size=64)["image"]
    images = [scenes[0], scenes[1].resize((90, 50))]
    maps = dense_features(model, processor(images, do_resize=False)["pixel_values"], window=48)
    assert [tuple(found.shape) for found in maps] == [(96, 8, 8), (96, 6, 11)]
    assert all(found.isfinite().all() for found in maps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"images": torch.zeros(3, 16, 16)},
            "images: got torch.float32 (3, 16, 16), accepted: normalised floating-point",
        ),
        ({"images": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, "images: got torch.uint8 (1, 3, 16, 16), accepted"),
        ({"images": ["a.png"]}, "images: got str, accepted"),
        ({"window": 20}, "window: got 20, accepted: a multiple of the model's patch size (8)"),
        (
            {"window": 24, "stride": 12},
            "stride: got 12, accepted: a multiple of the patch size (8) up to the window (24)",
        ),
        ({"window": 24, "stride": 32}, "stride: got 32, accepted"),
        ({"window": 24, "stride": 0}, "stride: got 0, accepted"),
        ({"stride": 8}, "stride: got 8, accepted: only with a window"),
        ({"upsample": "pixels"}, "upsample: got 'pixels', accepted: None, 'image' or (height, width) in pixels"),
        ({"upsample": (0, 8)}, "upsample: got (0, 8), accepted"),
        ({"model": torch.nn.Identity()}, "model: got a Identity, accepted: a Dinov3Model"),
        ({"model": Dinov3Backbone(CONFIG)}, "model: got a Dinov3Backbone, accepted: a Dinov3Model"),
        ({"model": AutoModel.from_pretrained(tiny_checkpoint())}, "model: got a DINOv3ViTModel, accepted"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, arguments, message):
    with pytest.raises(ValueError) as error:
        dense_features(**{"model": model, "images": torch.zeros(1, 3, 16, 16), **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)
