"""Linear depth: bins, loss and errors against naive loops, and the evaluation end to end."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PilImage
from torch import nn

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation import depth
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.depth import (
    best_constants,
    bin_centres,
    constant_depths,
    constant_errors,
    depth_errors,
    depth_loss,
    evaluate_depth,
    expected_depth,
    sigma_loss,
)


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))


def encode(pixels: np.ndarray, kind="PNG") -> dict:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format=kind)
    return {"bytes": buffer.getvalue(), "path": None}


def dataset(images, depths):
    columns = {"image": list(images), "depth": list(depths)}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "depth": Image()}))


def blocks(num, seed, height=48, width=64, depth_seed=None):
    """Blocks of 16 pixels, the brighter the nearer (0.5 to 4 m, stored in millimetres)."""
    generator = np.random.default_rng(seed)
    closeness = generator.random((num, height // 16, width // 16)).repeat(16, 1).repeat(16, 2)
    noise = generator.integers(0, 8, (num, height, width, 3))
    images = (30 + 210 * closeness[..., None] + noise).astype(np.uint8)
    depths = (4000 * 8**-closeness).astype(np.uint16)
    # Depths of another seed say nothing of these images.
    return images, depths if depth_seed is None else blocks(num, depth_seed, height, width)[1]


def rooms(num, seed, **how):
    images, depths = blocks(num, seed, **how)
    return dataset(map(encode, images), map(encode, depths))


def bench(size=48, **fields):
    return Bench(tiny_model(), Preprocessing(size, size), progress=False, **fields)


QUICK = {"steps": 60, "batch_size": 8, "lr": 0.01, "num_bins": 32, "max_depth": 5.0}


def test_bins_divide_the_range():
    centres = bin_centres(1.0, 3.0, 4)
    assert centres.tolist() == [1.25, 1.75, 2.25, 2.75]


@pytest.mark.parametrize("seed", range(3))
def test_expected_depth_is_that_of_a_naive_loop(seed):
    generator = np.random.default_rng(seed)
    outputs, centres = generator.normal(size=(5, 3, 16)), np.sort(generator.random(16))
    found = expected_depth(torch.from_numpy(outputs), torch.from_numpy(centres))
    for place in np.ndindex(5, 3):
        weights = [max(value, 0) + 0.1 for value in outputs[place]]
        expected = sum(weight / sum(weights) * centre for weight, centre in zip(weights, centres, strict=True))
        assert found[place].item() == pytest.approx(expected)


def naive_sigma(predicted, truth):
    errors = [np.log(p) - np.log(t) for p, t in zip(predicted, truth, strict=True) if t > 0]
    mean = sum(errors) / len(errors)
    return np.sqrt(sum((error - mean) ** 2 for error in errors) / len(errors) + 0.15 * mean**2)


@pytest.mark.parametrize("seed", range(3))
def test_loss_is_that_of_a_naive_loop(seed):
    generator = np.random.default_rng(seed)
    predicted, truth = generator.random((2, 300)) * 5 + 0.1
    truth[generator.random(300) < 0.3] = 0
    found = sigma_loss(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert found.item() == pytest.approx(naive_sigma(predicted, truth))
    scaled = sigma_loss(
        torch.from_numpy(predicted[truth > 0] * 0 + truth[truth > 0] * 2), torch.from_numpy(truth[truth > 0])
    )
    assert scaled.item() == pytest.approx(np.sqrt(0.15) * np.log(2), rel=1e-4)


def test_loss_of_crops_counts_all_their_pixels_together():
    generator = torch.Generator().manual_seed(0)
    centres, crops, predicted, truth = bin_centres(0.001, 10, 16), [], [], []
    for size in ((2, 3), (4, 4)):
        outputs = torch.randn(2, *size, 16, generator=generator)
        stored = torch.randint(0, 5000, (2, 8 * size[0], 8 * size[1]), generator=generator)
        stored[:, :3] = 0
        crops.append((outputs, torch.from_numpy(stored.numpy().astype(np.uint16))))
        depths = nn.functional.interpolate(
            expected_depth(outputs, centres)[:, None], size=stored.shape[1:], mode="bilinear"
        )
        predicted += depths.flatten().tolist()
        truth += (stored * 0.001).flatten().tolist()
    assert depth_loss(crops, centres, 0.001).item() == pytest.approx(naive_sigma(predicted, truth), rel=1e-5)


def test_loss_without_a_valid_pixel_or_without_error_has_a_finite_gradient():
    for truth in (torch.zeros(4), torch.full((4,), 2.0)):
        predicted = torch.full((4,), 2.0, requires_grad=True)
        loss = sigma_loss(predicted, truth)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-5) and predicted.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_those_of_a_naive_loop(seed):
    predicted, truth = np.random.default_rng(seed).random((2, 200)) + 0.5
    squares = relative = within = 0.0
    for p, t in zip(predicted, truth, strict=True):
        squares, relative = squares + (p - t) ** 2, relative + abs(p - t) / t
        within += max(p / t, t / p) < 1.25
    expected = (np.sqrt(squares / 200), relative / 200, within / 200)
    assert depth_errors(predicted, truth) == pytest.approx(expected)


def test_measures_are_means_over_images_of_their_valid_pixels(monkeypatch):
    train, test = blocks(5, 0), blocks(4, 1)
    test[1][0, :40] = 0
    test[1][1, 0] = 60_000  # beyond max_depth
    monkeypatch.setattr(depth, "expected_depth", lambda outputs, centres: outputs.sum(-1) * 0 + 1.5)
    result = evaluate_depth(
        bench(baselines=False), *(dataset(map(encode, a), map(encode, b)) for a, b in (train, test)), steps=1
    )

    def naive(constant):
        lines = []
        for stored in test[1]:
            truth = [value / 1000 for value in stored.ravel().tolist() if 1 <= value <= 10_000]
            rmse = np.sqrt(sum((constant - t) ** 2 for t in truth) / len(truth))
            relative = sum(abs(constant - t) / t for t in truth) / len(truth)
            lines.append((rmse, relative, sum(max(constant / t, t / constant) < 1.25 for t in truth) / len(truth)))
        return [sum(column) / 4 for column in zip(*lines, strict=True)]

    assert [metric["metric"] for metric in result.metrics] == ["RMSE (m)", "ARel", "delta1"]
    assert [metric.get("lower_is_better", False) for metric in result.metrics] == [True, True, False]
    assert [metric["model"] for metric in result.metrics] == pytest.approx(naive(1.5))
    # Each metric has its own best constant.
    lines = [naive(constant) for constant in constant_depths(0.001, 10)[::8]]
    found = [metric["chance"] for metric in result.metrics]
    for value, column, pick in zip(found, zip(*lines, strict=True), (min, min, max), strict=True):
        assert pick(value, *column) == pytest.approx(value)
    assert all(metric["interval"][0] <= metric["model"] <= metric["interval"][1] for metric in result.metrics)


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_constants_are_those_of_each_constant(seed):
    generator = np.random.default_rng(seed)
    truth, constants = generator.choice([0.5, 1.0, 1.3, 2.7, 9.0], 50), np.array([0.4, 0.8, 1.0, 1.25, 2.7, 9.9])
    truth = truth if seed else truth + generator.random(50)
    expected = [depth_errors(np.full_like(truth, constant), truth) for constant in constants]
    assert constant_errors(truth, constants) == pytest.approx(np.array(expected))
    assert best_constants(np.array([[3.0, 1, 0.1], [2.0, 5, 0.3], [4.0, 2, 0.2]])) == [1, 0, 1]


@pytest.mark.parametrize("augment", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_depth_is_learnt(augment):
    test, quick = rooms(6, 1), {**QUICK, "steps": 250, "augment": augment}
    learnt = evaluate_depth(bench(), rooms(16, 0), test, **quick)
    rmse, relative, delta = learnt.metrics
    assert delta["raw_pixels"] > 0.7 > 1.5 * delta["chance"]
    assert rmse["raw_pixels"] < 0.5 * rmse["chance"] and relative["raw_pixels"] < 0.5 * relative["chance"]
    assert set(rmse) == {"metric", "lower_is_better", "model", "random_init", "raw_pixels", "chance", "interval"}
    assert learnt.pictures["depth"].width > 4 * 240


def test_depth_of_other_images_is_not_learnt():
    rmse, relative, delta = evaluate_depth(bench(), rooms(16, 0, depth_seed=2), rooms(6, 1), **QUICK).metrics
    assert rmse["raw_pixels"] > 0.8 * rmse["chance"] and delta["raw_pixels"] < 0.5


def test_runs_repeat_and_the_seed_decides():
    train, test = rooms(8, 0), rooms(4, 1)
    first, again, other = (
        evaluate_depth(bench(seed=seed), train, test, **{**QUICK, "steps": 5}).metrics for seed in (0, 0, 1)
    )
    assert first == again != other


def test_invalid_depths_change_nothing():
    images, depths = blocks(8, 0)
    unknown, results = np.random.default_rng(0).random(depths.shape) < 0.3, []
    for value in (0, 5_001, 65_535):
        rows = dataset(
            map(encode, images), [encode(one) for one in np.where(unknown, value, depths).astype(np.uint16)]
        )
        results.append(evaluate_depth(bench(), rows, rows.select(range(3)), **{**QUICK, "steps": 10}).metrics)
    assert results[0] == results[1] == results[2]


def test_modes_and_units_of_the_same_depths_give_the_same():
    images, depths = blocks(8, 0)
    quick, results = {**QUICK, "steps": 10}, []
    stored = [
        ([encode(one) for one in depths], 0.001),
        ([encode(one.astype(np.int32), "TIFF") for one in depths], 0.001),
        ([encode(one.astype(np.float32), "TIFF") for one in depths], 0.001),
        ([encode((one.astype(np.float32) / 1000), "TIFF") for one in depths], 1.0),
        ([encode(one * np.uint16(10)) for one in depths], 0.0001),
    ]
    for maps, unit in stored:
        rows = dataset(map(encode, images), maps)
        result = evaluate_depth(bench(baselines=False), rows, rows.select(range(3)), depth_unit=unit, **quick)
        results.append([metric["model"] for metric in result.metrics])
    assert results[0] == results[1] == results[2]
    assert results[3] == pytest.approx(results[0], rel=1e-4) and results[4] == pytest.approx(results[0], rel=1e-4)


def test_maps_of_half_the_size_are_accepted_and_broken_ones_left_out():
    (images, depths), test = blocks(16, 0), rooms(6, 1)
    broken = {"bytes": b"no image", "path": None}
    maps = [encode(one[::2, ::2].copy()) for one in depths]
    extra_images = [broken, encode(images[0]), encode(images[1])]
    extra_maps = [maps[0], broken, encode(np.zeros_like(depths[0]))]
    halves = dataset([*map(encode, images), *extra_images], maps + extra_maps)
    whole = dataset(map(encode, images), map(encode, depths))
    first, second = (evaluate_depth(bench(), train, test, **QUICK) for train in (whole, halves))
    assert second.skipped_images == {"train": 1, "test": 0} and second.protocol["num_train"] == 16
    assert second.skipped_rows == {
        "depth: train: map cannot be read": 1,
        "depth: train: no pixel of the map counts": 1,
    }
    for a, b in zip(first.metrics, second.metrics, strict=True):
        assert a["raw_pixels"] == pytest.approx(b["raw_pixels"], abs=0.05)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depth_column": "mask"}, r"depth_column: got 'mask', accepted: a column of the data set \(image, depth\)"),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"depth_column": "image"}, "depth_column: got an image of mode RGB, accepted: one channel of 16 or 32 bits"),
        ({"depth_unit": 0.0}, "depth_unit: got 0.0, accepted: metres above 0"),
        ({"min_depth": 0.0}, "min_depth: got 0.0, accepted: metres above 0 and below max_depth"),
        ({"min_depth": 20.0}, "min_depth: got 20.0, accepted: metres above 0 and below max_depth"),
        ({"num_bins": 1}, "num_bins: got 1, accepted: a whole number of at least 2"),
        ({"crop": 20}, r"crop: got 20, accepted: a multiple of the model's patch size \(8\)"),
        ({"max_depth": 0.2}, "depth_column: none of the 2 depth: train rows has an image and a map that can be read"),
        ({"empty": True}, "data: got no rows for depth: test, accepted: at least one image"),
        ({"cut": True}, "depth_column: row 0 has a mask of 32x48 for an image of 64x48"),
        ({"preprocessing": Preprocessing(44, 44)}, "image_size: got 44, accepted: a multiple"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message, monkeypatch):
    change = dict(change)
    images, depths = blocks(2, 0)
    if change.pop("cut", False):
        depths = depths[:, :, :32]
    rows = dataset(map(encode, images), map(encode, depths))
    test = rows.select([]) if change.pop("empty", False) else rows
    view = change.pop("preprocessing", Preprocessing(48, 48))
    monkeypatch.setattr(Bench, "extract", lambda *given, **named: pytest.fail("the network was run"))
    with pytest.raises(ValueError, match=message):
        evaluate_depth(Bench(tiny_model(), view, progress=False), rows, test, **{"steps": 1, "crop": 48, **change})


def test_columns_of_numbers_are_refused():
    rows = rooms(2, 0).add_column("metres", [1.0, 2.0])
    with pytest.raises(ValueError, match="depth_column: got 'metres', accepted: a column of images"):
        evaluate_depth(bench(), rows, rows, depth_column="metres")
