"""The grid of SGD heads against heads trained alone, its batches and crops, resuming, and the evaluation around it."""

import io
import json
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PilImage
from torch import nn
from torchvision.transforms import v2

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation import linear_sgd, probe
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.feature_store import FeatureStore
from dinov3_hf.evaluation.linear_sgd import (
    CROP_TRIES,
    LEARNING_RATES,
    crop_box,
    evaluate_linear_sgd,
    grid_of_heads,
    rows_of_step,
    train_grid,
)


COLOURS = ["red", "green", "blue"]


def tiny_bench(folder=None, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))
    return Bench(model, Preprocessing(32, 32), FeatureStore(folder), progress=False, **settings)


def coloured_images(num, seed, names=COLOURS, bad=(), shuffled=False, columns=None):
    """Images of one noisy colour each, labelled with it or, `shuffled`, with another's; `columns` may be alike."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, num)
    pixels = np.repeat(
        generator.integers(0, 60, (num, 32, columns or 32, 3), dtype=np.uint8), 32 // (columns or 32), 2
    )
    images = []
    for index, colour in enumerate(labels):
        pixels[index, :, :, colour] += 180
        buffer = io.BytesIO()
        PilImage.fromarray(pixels[index]).save(buffer, format="PNG")
        images.append({"bytes": b"not an image" if index in bad else buffer.getvalue(), "path": None})
    labels = generator.permutation(labels) if shuffled else labels
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    values = [names.index(COLOURS[label]) for label in labels]
    return Dataset.from_dict({"image": images, "label": values}, features=features)


def test_learning_rates_are_the_papers():
    assert LEARNING_RATES == pytest.approx(
        [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_a_grid_trained_at_once_equals_each_head_alone(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(200, width, generator=generator).to(dtype)
        for name, width in (("model", 12), ("random_init", 7))
    }
    labels = torch.randint(5, (200,), generator=generator)
    rates, steps = [1e-5, 1e-3, 0.1, 0.7], 60
    heads = {name: grid_of_heads(x.shape[1], 5, len(rates), 3) for name, x in features.items()}
    heads = nn.ModuleDict(heads).to(dtype)
    starts = {name: head.weight[:5].detach().clone() for name, head in heads.items()}

    def rows(step):
        return rows_of_step(step, 200, 32, 0)

    def inputs(step):
        return {name: x[rows(step)] for name, x in features.items()}

    train_grid(heads, inputs, lambda step: labels[rows(step)], rates, steps)
    for name, x in features.items():
        for place, rate in enumerate(rates):
            alone = nn.Linear(x.shape[1], 5, dtype=dtype)
            with torch.no_grad():
                alone.weight.copy_(starts[name])
                alone.bias.zero_()
            optimizer = torch.optim.SGD(alone.parameters(), lr=rate, momentum=0.9)
            for step in range(steps):
                # A cosine to zero, which the schedule reaches to 1 / 250000.
                height = (1 + math.cos(math.pi * (step + 1) / steps)) / 2
                optimizer.param_groups[0]["lr"] = rate * (height + (1 - height) / 250_000)
                optimizer.zero_grad()
                nn.functional.cross_entropy(alone(x[rows(step)]), labels[rows(step)]).backward()
                optimizer.step()
            for mine, theirs in ((heads[name].weight, alone.weight), (heads[name].bias, alone.bias)):
                mine = mine.unflatten(0, (len(rates), 5))[place]
                start = starts[name] if mine.ndim == 2 else torch.zeros(5, dtype=dtype)
                way = (theirs - start).abs().max().item()
                assert way > 0.1 * rate
                assert (mine - theirs).abs().max() < tolerance * way


@pytest.mark.parametrize("num_rows, batch_size", [(50, 8), (8, 8), (5, 16)])
def test_epochs_visit_every_row_once(num_rows, batch_size):
    visited = torch.cat([rows_of_step(step, num_rows, batch_size, 1) for step in range(3 * num_rows)])
    epochs = visited[: len(visited) // num_rows * num_rows].view(-1, num_rows)
    assert len(epochs) >= 3 * batch_size - 1
    assert all(sorted(epoch.tolist()) == list(range(num_rows)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(rows_of_step(2, num_rows, batch_size, 1), visited[2 * batch_size : 3 * batch_size])
    assert not torch.equal(rows_of_step(0, num_rows, batch_size, 2), visited[:batch_size])


@pytest.mark.parametrize("height, width", [(40, 60), (200, 90)])
def test_crops_are_distributed_as_those_of_torchvision(height, width):
    numbers = torch.rand(4000, CROP_TRIES, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = torch.tensor([crop_box(height, width, tries) for tries in numbers.tolist()]).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform, image = v2.RandomResizedCrop(32), torch.empty(3, height, width)
        theirs = [transform.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[p[key] for key in ("top", "left", "height", "width")] for p in theirs]).double()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    for of in (boxes, theirs):
        of[:, 0], of[:, 1] = of[:, 0] / height, of[:, 1] / width
    for moment in (1, 2):
        mine, wanted = (of**moment for of in (boxes, theirs))
        error = (mine.var(0) / 4000 + wanted.var(0) / 4000).sqrt()
        assert ((mine.mean(0) - wanted.mean(0)).abs() < 4 * error).all()


@pytest.mark.parametrize("height, width", [(10, 1000), (1000, 10), (1, 1)])
def test_images_that_no_crop_fits_are_cut_at_the_centre(height, width):
    params = v2.RandomResizedCrop(32).make_params([torch.empty(3, height, width)])
    numbers = torch.rand(CROP_TRIES, 4, generator=torch.Generator().manual_seed(0)).tolist()
    assert crop_box(height, width, numbers) == tuple(params[key] for key in ("top", "left", "height", "width"))


def test_evaluation_counts_what_it_says():
    train, test = coloured_images(60, 0, bad=(3,)), coloured_images(21, 1, bad=(0, 5))
    result = evaluate_linear_sgd(tiny_bench(), train, test, steps=60, batch_size=32)
    assert result.task == "linear-sgd" and result.skipped_images == {"train": 1, "test": 2}
    protocol, (metric,) = result.protocol, result.metrics
    assert (protocol["num_train"], protocol["num_test"], protocol["num_held_out"]) == (59, 19, 6)
    assert protocol["epochs"] == pytest.approx(60 * 32 / 53)
    assert set(metric) == {"metric", "model", "random_init", "raw_pixels", "chance", "interval"}
    assert metric["raw_pixels"] == metric["model"] == 1
    assert set(protocol["learning_rate"].values()) <= set(LEARNING_RATES)
    ends = [
        name for name, rate in protocol["learning_rate"].items() if rate in (LEARNING_RATES[0], LEARNING_RATES[-1])
    ]
    assert protocol["learning_rate_at_an_end_of_the_grid"] == ends
    assert result.hits["rows"] == [row for row in range(21) if row not in (0, 5)] and result.hits["model"].all()
    assert sum(line["images"] for line in result.details["per_class"]) == 19
    assert result.pictures["learning rate"].width > 600
    json.dumps(result.as_dict())


def test_the_rate_is_chosen_on_held_out_images_alone(monkeypatch):
    train, test = coloured_images(60, 0), coloured_images(20, 1)
    plain = linear_sgd.ClassificationData.open

    def read(*arguments):
        data = plain(*arguments)
        # Held-out images of a wrong class: the best rate is the one that learns the others worst.
        data.train.labels[data.held] = (data.train.labels[data.held] + 1) % 3
        return data

    right = evaluate_linear_sgd(tiny_bench(baselines=False), train, test, steps=60, batch_size=32)
    monkeypatch.setattr(linear_sgd.ClassificationData, "open", read)
    wrong = evaluate_linear_sgd(tiny_bench(baselines=False), train, test, steps=60, batch_size=32)
    assert right.metrics[0]["model"] == 1 and wrong.metrics[0]["model"] < 1
    assert wrong.protocol["learning_rate"]["model"] < right.protocol["learning_rate"]["model"]


def test_labels_of_other_images_give_chance():
    train, wrong = coloured_images(60, 0), coloured_images(150, 1, shuffled=True)
    result = evaluate_linear_sgd(tiny_bench(baselines=False), train, wrong, steps=60, batch_size=32)
    # Four standard deviations of a third of 150 images.
    assert result.metrics[0]["model"] == pytest.approx(1 / 3, abs=0.154)


def test_sets_out_of_distribution_and_classes_that_train_lacks():
    train = coloured_images(80, 0).filter(lambda row: row["label"] != 2)
    test, other = coloured_images(30, 1, names=["blue", "red", "green"]), coloured_images(20, 2)
    result = evaluate_linear_sgd(
        tiny_bench(), train, test, out_of_distribution={"odd": other}, steps=60, batch_size=32
    )
    found = {metric["metric"]: metric["raw_pixels"] for metric in result.metrics}
    assert found["top-1"] == pytest.approx(sum(label != 0 for label in test["label"]) / 30)
    assert found["top-1 (odd)"] == pytest.approx(sum(label != 2 for label in other["label"]) / 20)
    assert result.protocol["classes_not_in_train"] == ["blue"]
    assert result.protocol["out_of_distribution"]["odd"]["classes_not_in_train"] == ["blue"]


def test_crops_that_change_nothing_give_the_features_of_whole_images(monkeypatch):
    # Columns are all alike, so that a flip changes nothing either.
    train, test = coloured_images(40, 0, columns=1, bad=(2,)), coloured_images(12, 1)
    monkeypatch.setattr(linear_sgd, "crop_box", lambda height, width, numbers: (0, 0, height, width))
    seen = []
    plain = linear_sgd.train_grid

    def train_and_note(heads, inputs_at, labels_at, rates, steps, *others):
        seen.append([(inputs_at(step), labels_at(step)) for step in range(steps)])
        plain(heads, inputs_at, labels_at, rates, steps, *others)

    monkeypatch.setattr(linear_sgd, "train_grid", train_and_note)
    for augment in (False, True):
        evaluate_linear_sgd(tiny_bench(batch_size=5), train, test, steps=3, batch_size=16, augment=augment)
    for (cached, labels), (run, same) in zip(*seen, strict=True):
        assert torch.equal(labels, same) and cached.keys() == run.keys() == {"model", "random_init", "raw_pixels"}
        for name in cached:
            torch.testing.assert_close(cached[name], run[name], rtol=1e-4, atol=1e-5)


def test_augmented_images_are_drawn_anew_and_half_are_flipped(monkeypatch):
    # A bright left half tells a flip.
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 250
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG")
    train = coloured_images(40, 0)
    images = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 40, "label": train["label"]}
    train = Dataset.from_dict(images, features=train.features)
    drawn, is_bright = [], []

    def whole_image(height, width, numbers):
        drawn.append(numbers[0][0])
        return 0, 0, height, width

    def look(heads, inputs_at, labels_at, rates, steps, *others):
        for step in range(steps):
            is_bright.extend((inputs_at(step)["raw_pixels"].view(-1, 3, 32, 32)[:, 0, 0, 0] > 0).tolist())

    monkeypatch.setattr(linear_sgd, "crop_box", whole_image)
    monkeypatch.setattr(linear_sgd, "train_grid", look)
    evaluate_linear_sgd(tiny_bench(), train, train.select(range(5)), steps=8, batch_size=32, augment=True)
    assert len(set(drawn)) == len(drawn) == len(is_bright) == 8 * 32
    # Four standard deviations of a half of 256.
    assert sum(is_bright) / 256 == pytest.approx(0.5, abs=0.125)


@pytest.mark.parametrize("augment", [False, True])
def test_an_interrupted_training_goes_on_to_the_same_figures(monkeypatch, tmp_path, augment):
    train, test = coloured_images(40, 0), coloured_images(12, 1)
    settings = {"steps": 12, "batch_size": 16, "augment": augment}
    whole = evaluate_linear_sgd(tiny_bench(tmp_path / "whole"), train, test, **settings)
    plain, calls = linear_sgd.grid_loss, []

    def stopping(limit):
        def loss(logits, labels, rates):
            calls.append(len(logits))
            if len(calls) > limit:
                raise KeyboardInterrupt
            return plain(logits, labels, rates)

        return loss

    monkeypatch.setattr(probe, "SAVE_SECONDS", -1)
    monkeypatch.setattr(linear_sgd, "grid_loss", stopping(3 * 5 + 1))
    with pytest.raises(KeyboardInterrupt):
        evaluate_linear_sgd(tiny_bench(tmp_path / "parts"), train, test, **settings)
    calls.clear()
    monkeypatch.setattr(linear_sgd, "grid_loss", stopping(math.inf))
    resumed = evaluate_linear_sgd(tiny_bench(tmp_path / "parts"), train, test, **settings)
    # Three encoders, five of twelve steps saved.
    assert len(calls) == 3 * 7
    assert resumed.as_dict() == whole.as_dict()
    states = [torch.load(next((tmp_path / name / "heads").glob("*.pt"))) for name in ("whole", "parts")]
    for name, value in states[0]["head"].items():
        assert torch.equal(value, states[1]["head"][name])
    calls.clear()
    other = evaluate_linear_sgd(tiny_bench(tmp_path / "parts"), train, test, **{**settings, "steps": 13})
    assert len(calls) == 3 * 13 and other.protocol["steps"] == 13


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps: got 0, accepted: a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size: got -1, accepted: a whole number of at least 1"),
        ({"label_column": "labels"}, "label_column: got 'labels', accepted: a column of the data set"),
        ({"image_column": "picture"}, "image_column: got 'picture', accepted: a column"),
        ({"num": 4}, "train: got 4 images of 3 classes, accepted: two classes or more, and enough images"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change, message):
    change, bench = dict(change), tiny_bench()
    bench.extract = None
    rows = coloured_images(change.pop("num", 20), seed=0)
    with pytest.raises(ValueError, match=message):
        evaluate_linear_sgd(bench, rows, rows, **change)
