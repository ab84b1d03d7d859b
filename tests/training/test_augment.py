"""Augmentation: every operation against torchvision's, every draw against its distribution."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dinov3_hf.training import augment
from dinov3_hf.training.arguments import CropArguments
from dinov3_hf.training.augment import MultiCrop, augment_colors, draw_box, draw_crop, resized_crop


@pytest.fixture(scope="module")
def pixels():
    """Smooth colour images, as uint8 and in 0..1."""
    torch.manual_seed(0)
    small = torch.rand(6, 3, 5, 5)
    image = F.resize(small, [33, 33], antialias=True).clamp(0, 1)
    return (image * 255).round().to(torch.uint8)


def draws(scale=(0.2, 0.8), count=4000, size=(40, 60), **fields):
    crops = CropArguments(**fields)
    return [
        draw_crop(*size, list(scale), 0.5, 0.2, crops, np.random.default_rng([1, index])) for index in range(count)
    ]


@pytest.mark.parametrize(
    "ours, theirs, factor",
    [
        (augment.adjust_brightness, F.adjust_brightness, 1.3),
        (augment.adjust_brightness, F.adjust_brightness, 0.7),
        (augment.adjust_contrast, F.adjust_contrast, 1.4),
        (augment.adjust_contrast, F.adjust_contrast, 0.6),
        (augment.adjust_saturation, F.adjust_saturation, 1.2),
        (augment.adjust_saturation, F.adjust_saturation, 0.0),
        (augment.adjust_hue, F.adjust_hue, 0.1),
        (augment.adjust_hue, F.adjust_hue, -0.4),
    ],
)
def test_colour_operations_equal_torchvisions(pixels, ours, theirs, factor):
    found = ours(pixels / 255, torch.full((6, 1, 1, 1), factor))
    assert (found - theirs(pixels / 255, factor)).abs().max() < 2e-3
    assert (found * 255 - theirs(pixels, factor)).abs().max() <= 2


def test_factors_are_each_images_own(pixels):
    factors = torch.linspace(0.5, 1.5, 6).view(-1, 1, 1, 1)
    together = augment.adjust_contrast(pixels / 255, factors)
    for index in range(6):
        alone = F.adjust_contrast(pixels[index] / 255, factors[index].item())
        assert (together[index] - alone).abs().max() < 1e-5


def test_blur_equals_torchvisions(pixels):
    sigmas = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 0.3])
    found = augment.gaussian_blur(pixels / 255, sigmas, 9)
    for index, sigma in enumerate(sigmas.tolist()):
        assert (found[index] - F.gaussian_blur(pixels[index] / 255, [9, 9], [sigma, sigma])).abs().max() < 1e-5


def test_grey_and_solarize_equal_torchvisions(pixels):
    draw = draws(count=1)[0]
    draw.order, draw.sigma = draw.order[:0], 0.0
    draw.grayscale, draw.solarize = True, False
    found = augment_colors(pixels / 255, [draw] * 6, 9)
    assert (found - F.rgb_to_grayscale(pixels / 255, 3)).abs().max() < 1e-3
    draw.grayscale, draw.solarize = False, True
    found = augment_colors(pixels / 255, [draw] * 6, 9)
    assert (found * 255 - F.solarize(pixels, 128)).abs().max() < 1e-3


def test_jitter_follows_its_own_order(pixels):
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        draw = draws(count=1)[0]
        draw.order, draw.factors = np.array(order), np.array([1.2, 0.7, 1.4, 0.05])
        draw.grayscale, draw.solarize, draw.sigma = False, False, 0.0
        expected = pixels / 255
        theirs = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for index in order:
            expected = theirs[index](expected, draw.factors[index])
        assert (augment_colors(pixels / 255, [draw] * 6, 9) - expected).abs().max() < 5e-3


def test_crop_equals_torchvisions_resized_crop(pixels):
    draw = draws(count=1, size=(33, 33))[0]
    draw.box, draw.flip = (3, 5, 20, 17), True
    found = resized_crop(pixels[0], draw, 16)[0]
    expected = F.hflip(F.resized_crop(pixels[0], 3, 5, 20, 17, [16, 16], v2.InterpolationMode.BICUBIC, antialias=True))
    assert (found.int() - expected.int()).abs().max() <= 1


def test_boxes_follow_torchvisions_distribution():
    rng, scale = np.random.default_rng(0), [0.1, 0.6]
    ours = np.array([draw_box(40, 60, scale, rng) for _ in range(6000)])
    torch.manual_seed(0)
    image = torch.empty(3, 40, 60)
    crop = v2.RandomResizedCrop(8, scale=scale)
    theirs = [crop.make_params([image]) for _ in range(6000)]
    theirs = np.array([[box["top"], box["left"], box["height"], box["width"]] for box in theirs])
    for column in range(4):
        grid = np.arange(61)
        gap = np.abs((ours[:, column, None] <= grid).mean(0) - (theirs[:, column, None] <= grid).mean(0)).max()
        # Kolmogorov-Smirnov at one in a thousand for two samples of 6000.
        assert gap < 1.95 * math.sqrt(2 / 6000)


def test_boxes_of_images_too_narrow_fall_back_to_the_centre():
    assert draw_box(100, 10, [1.0, 1.0], np.random.default_rng(0)) == (43, 0, 13, 10)
    assert draw_box(10, 100, [1.0, 1.0], np.random.default_rng(0)) == (0, 43, 10, 13)


def test_draws_have_the_recipes_probabilities_and_ranges():
    found = draws()
    share = lambda values: np.mean(list(values))  # noqa: E731
    assert share(draw.flip for draw in found) == pytest.approx(0.5, abs=0.03)
    assert share(len(draw.order) > 0 for draw in found) == pytest.approx(0.8, abs=0.03)
    assert share(draw.grayscale for draw in found) == pytest.approx(0.2, abs=0.03)
    assert share(draw.sigma > 0 for draw in found) == pytest.approx(0.5, abs=0.03)
    assert share(draw.solarize for draw in found) == pytest.approx(0.2, abs=0.03)
    factors = np.array([draw.factors for draw in found])
    for column, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        values = factors[:, column]
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
    sigmas = [draw.sigma for draw in found if draw.sigma]
    assert 0.1 <= min(sigmas) < 0.11 and 1.99 < max(sigmas) <= 2.0
    firsts = np.bincount([draw.order[0] for draw in found if len(draw.order)], minlength=4)
    assert firsts.min() > 0.22 * firsts.sum()
    assert not any(draw.flip for draw in draws(count=200, horizontal_flips=False))


def test_multi_crop_is_a_function_of_each_images_generator():
    crops = CropArguments(global_crop_size=16, local_crop_size=8, local_crops=3)
    images = [torch.randint(0, 256, (3, 20 + index, 31), dtype=torch.uint8) for index in range(4)]
    generators = lambda: [np.random.default_rng([0, index]) for index in range(4)]  # noqa: E731
    global_crops, local_crops, _ = MultiCrop(crops)(images, generators())
    assert global_crops.shape == (2, 4, 3, 16, 16) and local_crops.shape == (3, 4, 3, 8, 8)
    again = MultiCrop(crops)(images[2:], generators()[2:])
    assert torch.allclose(again[0], global_crops[:, 2:], atol=1e-6) and torch.allclose(
        again[1], local_crops[:, 2:], atol=1e-6
    )


def test_crops_are_normalised_and_images_left_alone():
    crops = CropArguments(
        global_crop_size=8, local_crop_size=8, local_crops=0, color_jitter_probability=0, grayscale_probability=0,
        solarize_probability=0, blur_probability=[0, 0, 0],
    )  # fmt: skip
    image = torch.full((3, 12, 12), 128, dtype=torch.uint8)
    global_crops, local_crops, _ = MultiCrop(crops)([image], [np.random.default_rng(0)])
    expected = (128 / 255 - torch.tensor(crops.image_mean)) / torch.tensor(crops.image_std)
    assert local_crops is None and torch.allclose(
        global_crops[0, 0], expected.view(3, 1, 1).expand(3, 8, 8), atol=1e-5
    )
    assert (image == 128).all()
