"""Augmentation: every operation against torchvision's, and crops that depend on nothing but their own image."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dinov3_hf.training.arguments import CropArguments
from dinov3_hf.training.batches import augment
from dinov3_hf.training.batches.augment import CropDraw, MultiCrop, augment_colors, resized_crop


COUNT = 6
TORCHVISIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


@pytest.fixture(scope="module")
def images():
    """Smooth colour images, uint8 [6, 3, 33, 35]; the last two have grey and saturated pixels too."""
    torch.manual_seed(0)
    found = F.resize(torch.rand(COUNT, 3, 5, 5), [33, 35], antialias=True).clamp(0, 1)
    found[4:, :, ::3] = found[4:, :1, ::3]
    found[4:, :, :, ::4] = found[4:, :, :, ::4].round()
    return (found * 255).round().to(torch.uint8)


def draw(**fields) -> CropDraw:
    nothing = {"flip": False, "order": [], "factors": [1.0] * 3 + [0.0], "grayscale": False, "sigma": 0.0}
    return CropDraw(**{"box": (0, 0, 33, 35), **nothing, "solarize": False, **fields})


@pytest.mark.parametrize(
    "ours, theirs, factors",
    [
        (augment.adjust_brightness, F.adjust_brightness, [0.0, 0.7, 1.0, 1.3]),
        (augment.adjust_contrast, F.adjust_contrast, [0.0, 0.6, 1.0, 1.4]),
        (augment.adjust_saturation, F.adjust_saturation, [0.0, 0.8, 1.0, 1.7]),
        (augment.adjust_hue, F.adjust_hue, [-0.5, -0.4, -0.2, -0.1, 0.0, 0.05, 1 / 6, 0.3, 1 / 3, 0.5]),
    ],
)
def test_jitter_equals_torchvisions(images, ours, theirs, factors):
    for factor in factors:
        for image in images:
            found = image.float()
            ours(found, factor)
            assert (found / 255 - theirs(image / 255, factor)).abs().max() < 1e-5
            # On whole numbers torchvision truncates, up to twice.
            assert (found - theirs(image, factor).float()).abs().max() < 2


def test_hue_is_kept_in_value_and_saturation_and_turns_full_circle(images):
    found = images[5].float()
    for _ in range(5):
        augment.adjust_hue(found, 0.2)
    assert (found - images[5]).abs().max() < 1e-2
    augment.adjust_hue(found, 0.37)
    assert torch.allclose(found.amax(0), images[5].amax(0).float(), atol=1e-2)
    assert torch.allclose(found.amin(0), images[5].amin(0).float(), atol=1e-2)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_torchvisions(images, sigma):
    for image in images:
        found = augment.gaussian_blur(image.float(), sigma, 9)
        assert (found / 255 - F.gaussian_blur(image / 255, [9, 9], [sigma, sigma])).abs().max() < 1e-5
        assert (found - F.gaussian_blur(image, [9, 9], [sigma, sigma]).float()).abs().max() <= 0.51


def test_blur_fits_images_smaller_than_its_kernel(images):
    found = augment.gaussian_blur(images[0, :, :3, :3].float(), 1.0, 9)
    assert torch.allclose(found, F.gaussian_blur(images[0, :, :3, :3].float(), [5, 5], [1.0, 1.0]), atol=1e-3)


def test_grey_and_solarize_equal_torchvisions(images):
    for image in images:
        found = augment_colors(image.float(), draw(grayscale=True), 9)
        assert (found / 255 - F.rgb_to_grayscale(image / 255, 3)).abs().max() < 1e-5
        found = augment_colors(image.float(), draw(solarize=True), 9)
        assert torch.equal(found, F.solarize(image, 128).float())


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
@pytest.mark.parametrize("factors", [[1.2, 0.7, 1.4, 0.05], [0.7, 1.3, 0.9, -0.1]])
def test_the_chain_equals_torchvisions(images, order, factors):
    for image in images:
        expected = image / 255
        for index in order:
            expected = TORCHVISIONS[index](expected, factors[index])
        found = augment_colors(image.float(), draw(order=order, factors=factors), 9)
        assert (found / 255 - expected).abs().max() < 1e-5
        expected = F.gaussian_blur(F.rgb_to_grayscale(expected, 3), [9, 9], [1.3, 1.3])
        grey = draw(order=order, factors=factors, grayscale=True, sigma=1.3)
        assert (augment_colors(image.float(), grey, 9) / 255 - expected).abs().max() < 1e-5
        # Between 127.5 and 128 torchvision leaves floats alone; in whole numbers there is nothing between.
        grey.solarize = True
        gap = augment_colors(image.float(), grey, 9) / 255 - F.solarize(expected, 128 / 255)
        assert gap.abs().max() < 1.01 / 255


def test_crop_equals_torchvisions_resized_crop(images):
    for image in (images[0], images[0].permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        found = resized_crop(image, draw(box=(3, 5, 20, 17), flip=True), 16)
        expected = F.resized_crop(image, 3, 5, 20, 17, [16, 16], v2.InterpolationMode.BICUBIC, antialias=True)
        assert (found.int() - F.hflip(expected).int()).abs().max() <= 1


def random_images(count: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, 256, (3, 20 + index, 31), dtype=torch.uint8) for index in range(count)]


def test_multi_crop_is_what_its_draws_say():
    crops = CropArguments(global_crop_size=16, local_crop_size=8, local_crops=3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (crops.image_mean, crops.image_std))
    images = random_images()
    global_crops, local_crops, gram_crops = MultiCrop(crops, 24)(images, [np.random.default_rng(i) for i in range(4)])
    for place, image in enumerate(images):
        rng = np.random.default_rng(place)
        kinds = [([0.32, 1.0], 0.0, 0.0), ([0.32, 1.0], 0.9, 0.2), *[([0.05, 0.32], 0.5, 0.0)] * 3]
        for index, kind in enumerate(kinds):
            found = global_crops[index, place] if index < 2 else local_crops[index - 2, place]
            drawn = augment.draw_crop(*image.shape[1:], *kind, crops, rng)
            expected = augment_colors(resized_crop(image, drawn, found.shape[-1]).float(), drawn, 9) / 255
            assert torch.allclose(found, (expected - mean) / std, atol=1e-5)
            if index < 2:
                expected = resized_crop(image, drawn, 24) / 255
                assert torch.allclose(gram_crops[index, place], (expected - mean) / std, atol=1e-5)


def test_a_crop_depends_on_its_own_image_alone_to_the_last_bit():
    crops = CropArguments(global_crop_size=16, local_crop_size=8, local_crops=3)
    images = random_images()
    generators = lambda: [np.random.default_rng([0, index]) for index in range(4)]  # noqa: E731
    together = MultiCrop(crops, 24)(images, generators())
    assert [tuple(kind.shape) for kind in together] == [(2, 4, 3, 16, 16), (3, 4, 3, 8, 8), (2, 4, 3, 24, 24)]
    for place in range(4):
        alone = MultiCrop(crops, 24)(images[place : place + 1], generators()[place : place + 1])
        for kind, expected in zip(alone, together, strict=True):
            assert torch.equal(kind[:, 0], expected[:, place])
    without = MultiCrop(crops)(images, generators())
    assert torch.equal(without[0], together[0]) and torch.equal(without[1], together[1]) and without[2] is None


def test_the_layout_of_an_images_memory_changes_nothing():
    crops = CropArguments(global_crop_size=16, local_crop_size=8, local_crops=3)
    images = random_images()
    interleaved = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]
    found, expected = (
        MultiCrop(crops)(kind, [np.random.default_rng(i) for i in range(4)]) for kind in (interleaved, images)
    )
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_crops_are_normalised_and_images_left_alone():
    crops = CropArguments(
        global_crop_size=8, local_crop_size=8, local_crops=0, color_jitter_probability=0, grayscale_probability=0,
        solarize_probability=0, blur_probability=[0, 0, 0],
    )  # fmt: skip
    image = torch.full((3, 12, 12), 128, dtype=torch.uint8)
    global_crops, local_crops, gram_crops = MultiCrop(crops)([image], [np.random.default_rng(0)])
    expected = (128 / 255 - torch.tensor(crops.image_mean)) / torch.tensor(crops.image_std)
    assert local_crops is None and gram_crops is None
    assert torch.allclose(global_crops[0, 0], expected.view(3, 1, 1).expand(3, 8, 8), atol=1e-5)
    images = random_images()
    copies = [image.clone() for image in images]
    MultiCrop(CropArguments(global_crop_size=16, local_crop_size=8))(
        images, [np.random.default_rng(i) for i in range(4)]
    )
    assert all(torch.equal(image, copy) for image, copy in zip(images, copies, strict=True))
