"""Augmentation: draws against their distributions, and whole crops against torchvision's transforms on PIL images."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dinov3_hf.data.pixels import decode_image
from dinov3_hf.data.scenes import render_scene
from dinov3_hf.training.arguments import CropArguments
from dinov3_hf.training.batches.augment import MultiCrop, draw_box, draw_crop


GLOBAL_SIZE, LOCAL_SIZE = 48, 24
COUNT, REPEATS = 16, 30


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small convolutions, torchvision's blur, take many times as long where threads fight for cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draws(scale=(0.2, 0.8), count=4000, size=(40, 60), **fields):
    crops = CropArguments(**fields)
    return [
        draw_crop(*size, list(scale), 0.5, 0.2, crops, np.random.default_rng([1, index])) for index in range(count)
    ]


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples, in units of its threshold at one in a thousand."""
    values = np.concatenate([ours, theirs])
    counts = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (ours, theirs)]
    return np.abs(counts[0] - counts[1]).max() / (1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs)))


@pytest.mark.parametrize("height, width, scale", [(40, 60, (0.1, 0.6)), (375, 500, (0.32, 1.0)), (30, 90, (0.5, 1.0))])
def test_boxes_follow_torchvisions_distribution(height, width, scale):
    rng = np.random.default_rng(0)
    ours = np.array([draw_box(height, width, list(scale), rng) for _ in range(4000)])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    crop = v2.RandomResizedCrop(8, scale=scale)
    theirs = [crop.make_params([image]) for _ in range(4000)]
    theirs = np.array([[box["top"], box["left"], box["height"], box["width"]] for box in theirs])
    for column in range(4):
        assert gap(ours[:, column], theirs[:, column]) < 1
    for derive in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 2] / box[:, 3]):
        assert gap(derive(ours), derive(theirs)) < 1
    assert ours[:, :2].min() >= 0 and (ours[:, :2] + ours[:, 2:]).max(axis=0).tolist() <= [height, width]


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
        assert low <= values.min() and values.max() <= high
        assert gap(values, np.random.default_rng(0).uniform(low, high, 4000)) < 1
    sigmas = np.array([draw.sigma for draw in found if draw.sigma])
    assert 0.1 <= sigmas.min() and sigmas.max() <= 2.0
    assert gap(sigmas, np.random.default_rng(0).uniform(0.1, 2.0, 4000)) < 1
    assert not any(draw.flip for draw in draws(count=200, horizontal_flips=False))


def test_every_order_of_the_jitter_is_equally_likely():
    orders = [tuple(draw.order) for draw in draws() if len(draw.order)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    # Chi-squared with 23 degrees of freedom at one in a thousand.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 49.7


def test_draws_are_independent_of_each_other():
    rows = [
        [*draw.box, draw.flip, len(draw.order) > 0, draw.grayscale, draw.sigma > 0, draw.solarize, *draw.factors]
        for draw in draws()
    ]
    correlation = np.corrcoef(np.array(rows, dtype=float).T)
    # The four numbers of a box do depend on each other.
    correlation[:4, :4] = 0
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 4 / math.sqrt(4000)


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def carpet(size: int = 112, period: int = 14) -> np.ndarray:
    """An orange pattern that looks alike everywhere: what differs between its crops is what was done to them."""
    y, x = np.mgrid[:size, :size]
    light = 0.5 + 0.4 * (x % period) / period + 0.1 * np.sin(2 * np.pi * y / period)
    return (light[..., None] * np.array([200.0, 140.0, 80.0])).round().astype(np.uint8)


@pytest.fixture(scope="module")
def files():
    scenes = [render_scene(index, "train", "crowded", 112, 0).image for index in range(COUNT)]
    return {"scenes": [jpeg(scene) for scene in scenes], "carpet": [jpeg(carpet())] * COUNT}


def statistics(crops: torch.Tensor, arguments: CropArguments) -> dict[str, np.ndarray]:
    """A few numbers of each crop [N, 3, S, S]: brightness, contrast, colour, direction, detail."""
    pixels = crops * torch.tensor(arguments.image_std).view(3, 1, 1) + torch.tensor(arguments.image_mean).view(3, 1, 1)
    grey = pixels.mean(dim=1)
    across = grey.diff(dim=-1)
    mean, deviation = grey.mean(dim=(1, 2)), grey.std(dim=(1, 2))
    saturation = (pixels.amax(dim=1) - pixels.amin(dim=1)).mean(dim=(1, 2))
    found = {
        "mean": mean,
        "deviation": deviation,
        "contrast": deviation / mean,
        "saturation": saturation,
        "vividness": saturation / deviation,
        "red": (pixels[:, 0] - grey).mean(dim=(1, 2)),
        "green": (pixels[:, 1] - grey).mean(dim=(1, 2)),
        "blue": (pixels[:, 2] - grey).mean(dim=(1, 2)),
        "slope": across.sign().mean(dim=(1, 2)),
        "detail": across.abs().mean(dim=(1, 2)),
        "darkest": grey.flatten(1).quantile(0.02, dim=1),
        "brightest": grey.flatten(1).quantile(0.98, dim=1),
    }
    # Rounded, so that grey crops tie.
    return {name: values.numpy().round(3) for name, values in found.items()}


def our_crops(files, **fields) -> list[torch.Tensor]:
    """First global, second global and local crops, each [N, 3, S, S]."""
    sizes = {"global_crop_size": GLOBAL_SIZE, "local_crop_size": LOCAL_SIZE, "local_crops": 1}
    crop = MultiCrop(CropArguments(**sizes, **fields))
    images = [decode_image(file) for file in files]
    found = []
    for repeat in range(REPEATS):
        global_crops, local_crops = crop(images, [np.random.default_rng([repeat, i]) for i in range(len(files))])[:2]
        found.append([*global_crops, local_crops[0]])
    return [torch.cat(kind) for kind in zip(*found, strict=True)]


def torchvision_crops(files) -> list[torch.Tensor]:
    """The same from torchvision's transforms, as the recipe lists them."""
    torch.manual_seed(0)
    kinds = [
        (GLOBAL_SIZE, (0.32, 1), 0.0, 0.0),
        (GLOBAL_SIZE, (0.32, 1), 0.9, 0.2),
        (LOCAL_SIZE, (0.05, 0.32), 0.5, 0.0),
    ]
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    found = []
    for size, scale, blur, solarize in kinds:
        chain = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
                v2.RandomSolarize(128, solarize),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        found.append(torch.stack([chain(image) for _ in range(REPEATS) for image in images]))
    return found


@pytest.fixture(scope="module")
def expected(files):
    return {
        name: [statistics(crops, CropArguments()) for crops in torchvision_crops(found)]
        for name, found in files.items()
    }


def gaps(files, expected, **fields) -> list[dict[str, float]]:
    """For each kind of crop, how far each statistic of ours is from torchvision's."""
    found = [statistics(crops, CropArguments()) for crops in our_crops(files, **fields)]
    return [
        {name: gap(ours[name], theirs[name]) for name in ours} for ours, theirs in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("name", ["scenes", "carpet"])
def test_crops_have_the_statistics_of_torchvisions(files, expected, name):
    for kind in gaps(files[name], expected[name]):
        assert max(kind.values()) < 1, kind


@pytest.mark.parametrize(
    "name, kind, statistic, fields",
    [
        ("carpet", 0, "slope", {"horizontal_flips": False}),
        ("carpet", 0, "mean", {"color_jitter": [0.2, 0.4, 0.2, 0.1]}),
        pytest.param("carpet", 0, "contrast", {"color_jitter": [0.4, 0.2, 0.2, 0.1]}, marks=pytest.mark.slow),
        pytest.param("carpet", 0, "vividness", {"color_jitter": [0.4, 0.4, 0.0, 0.1]}, marks=pytest.mark.slow),
        ("carpet", 0, "green", {"color_jitter": [0.4, 0.4, 0.2, 0.03]}),
        pytest.param("carpet", 0, "mean", {"color_jitter_probability": 0.4}, marks=pytest.mark.slow),
        ("carpet", 0, "saturation", {"grayscale_probability": 0.0}),
        ("scenes", 0, "detail", {"global_crop_scale": [0.05, 0.32]}),
        ("carpet", 1, "detail", {"blur_probability": [0.0, 0.5, 0.5]}),
        ("carpet", 1, "brightest", {"solarize_probability": 0.8}),
        pytest.param("carpet", 2, "detail", {"blur_probability": [0.0, 0.9, 0.1]}, marks=pytest.mark.slow),
    ],
)
def test_the_statistics_notice_another_recipe(files, expected, name, kind, statistic, fields):
    assert gaps(files[name], expected[name], **fields)[kind][statistic] > 1
