"""Held-out rows, measures out of distribution and mCE against naive loops, and classes matched by name."""

import io
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PilImage

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.data.views import Preprocessing
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.linear import evaluate_linear
from dinov3_hf.evaluation.robustness import (
    ALEXNET_ERRORS,
    corruption_metrics,
    join_vocabularies,
    read_corruptions,
    robustness_metrics,
    validation_split,
)


COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}


def tiny_bench():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.1))
    return Bench(model, Preprocessing(32, 32), progress=False)


def coloured_images(names, classes, seed, bad=(), **columns):
    """Images of one noisy colour each, labelled with its place in `classes`."""
    generator = np.random.default_rng(seed)
    images = []
    for place, name in enumerate(names):
        pixels = generator.integers(0, 60, (32, 32, 3)) + 180 * np.array(COLOURS[name])
        buffer = io.BytesIO()
        PilImage.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
        images.append({"bytes": b"no image" if place in bad else buffer.getvalue(), "path": None})
    features = {"image": Image(), "label": ClassLabel(names=classes)} | dict.fromkeys(columns, Value("string"))
    values = {"image": images, "label": [classes.index(name) for name in names], **columns}
    return Dataset.from_dict(values, features=Features(features))


def metrics_by_name(result):
    return {(m["metric"], m.get("corruption")): m for m in result.metrics}


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_every_class_is_held_out(seed):
    labels = torch.randint(4, (400,), generator=torch.Generator().manual_seed(seed)) ** 2
    fit, held = validation_split(labels, seed)
    assert sorted(fit.tolist() + held.tolist()) == list(range(400))
    assert abs(len(held) - 40) <= 1
    for label in labels.unique():
        assert abs((labels[held] == label).sum() - (labels == label).sum() / 10) < 1
    again, other = validation_split(labels, seed)[1], validation_split(labels, seed + 1)[1]
    assert torch.equal(held, again) and not torch.equal(held, other)


def test_no_class_loses_its_only_image():
    labels = torch.cat([torch.arange(60), torch.zeros(30, dtype=torch.long)])
    for seed in range(10):
        fit, held = validation_split(labels, seed)
        assert set(labels[fit].tolist()) == set(range(60)) and set(labels[held].tolist()) == {0}


@pytest.mark.parametrize("labels", [[], [3], [0, 0, 0, 1], [2] * 50, list(range(50))])
def test_too_few_images_to_hold_out_are_refused(labels):
    with pytest.raises(ValueError, match=rf"train: got {len(labels)} images of {len(set(labels))} classes, accepted"):
        validation_split(torch.tensor(labels, dtype=torch.long), 0)


@pytest.mark.parametrize("seed", range(5))
def test_measures_out_of_distribution_are_those_of_a_loop(seed):
    draw = random.Random(seed)
    test = [(draw.randrange(0, 6), draw.random() < 0.7) for _ in range(80)]
    other = [(draw.randrange(2, 8), draw.random() < 0.4) for _ in range(50)]

    def share(pairs, classes):
        counted = [hit for label, hit in pairs if label in classes]
        return sum(counted) / len(counted)

    def tensors(pairs):
        labels, hits = zip(*pairs, strict=True)
        return torch.tensor(labels), {"model": torch.tensor(hits)}

    metrics = robustness_metrics("sketches", *tensors(other), *tensors(test))
    common, everything = {label for label, _ in other} & {label for label, _ in test}, set(range(8))
    assert common == {2, 3, 4, 5}
    expected = {
        "top-1 (sketches)": share(other, everything),
        "top-1 (sketches, classes of test)": share(other, common),
        "top-1 (test, classes of sketches)": share(test, common),
        "top-1 difference (sketches - test)": share(other, common) - share(test, common),
    }
    assert {m["metric"]: m["model"] for m in metrics} == pytest.approx(expected)


def test_only_what_differs_is_told_twice():
    labels, hits = torch.tensor([0, 1, 2]), {"model": torch.tensor([True, False, True])}
    same = robustness_metrics("x", labels, hits, labels, hits)
    assert [m["metric"] for m in same] == ["top-1 (x)", "top-1 difference (x - test)"]
    assert same[1]["model"] == 0
    assert [m["metric"] for m in robustness_metrics("x", labels + 3, hits, labels, hits)] == ["top-1 (x)"]


@pytest.mark.parametrize("names", [list(ALEXNET_ERRORS), ["fog", "snow"], ["fog", "rain"]])
def test_mean_corruption_error_is_that_of_a_loop(names):
    draw = random.Random(len(names))
    rows = [(draw.choice(names), draw.random() < 0.3, draw.random() < 0.6) for _ in range(400)]
    corruptions, model, network = zip(*rows, strict=True)
    hits = {"model": torch.tensor(model), "random_init": torch.tensor(network)}
    metrics, meaning = corruption_metrics("noisy", list(corruptions), hits)
    for place, encoder in enumerate(hits):
        errors = {n: [not row[1 + place] for row in rows if row[0] == n] for n in names}
        errors = {n: sum(wrong) / len(wrong) for n, wrong in errors.items()}
        for metric in metrics[:-1]:
            assert metric[encoder] == pytest.approx(errors[metric["corruption"]])
        divisors = {n: 1.0 if "rain" in names else ALEXNET_ERRORS[n] for n in names}
        expected = sum(errors[n] / divisors[n] for n in names) / len(names)
        assert metrics[-1][encoder] == pytest.approx(expected)
    assert len(metrics) == len(names) + 1 and all(m["lower_is_better"] for m in metrics)
    normalised = "rain" not in names
    assert metrics[-1]["metric"] == ("mCE (noisy)" if normalised else "mean corruption error, unnormalised (noisy)")
    assert ("AlexNet's published" in meaning) == normalised and f"{len(names)} corruptions" in meaning


def test_alexnet_has_an_mce_of_one():
    corruptions = [name for name in ALEXNET_ERRORS for _ in range(1000)]
    hits = torch.cat([torch.arange(1000) >= round(1000 * error) for error in ALEXNET_ERRORS.values()])
    assert corruption_metrics("c", corruptions, {"model": hits})[0][-1]["model"] == pytest.approx(1)


def test_corruptions_are_read_in_one_spelling():
    texts = Dataset.from_dict({"corruption": ["Gaussian Noise", "jpeg-compression", "fog"]})
    assert read_corruptions(texts, "c") == ["gaussian_noise", "jpeg_compression", "fog"]
    feature = Features({"corruption": ClassLabel(names=["Zoom_Blur", "snow"])})
    assert read_corruptions(Dataset.from_dict({"corruption": [1, 0]}, features=feature), "c") == ["snow", "zoom_blur"]
    assert read_corruptions(Dataset.from_dict({"label": [1]}), "c") is None
    for values in ([1, 2], ["fog", None]):
        with pytest.raises(ValueError, match="c: corruption: got (1|None), accepted: a name in every row"):
            read_corruptions(Dataset.from_dict({"corruption": values}), "c")


def test_classes_are_matched_by_name():
    train, other, numbers = (
        Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=names)}))
        for names in (["7", "dog"], ["dog", "fox"], ["9", "7"])
    )
    names, index_of = join_vocabularies(["7", "dog", "emu"], train, {"a": other, "b": numbers}, "label")
    assert names == ["7", "dog", "emu", "fox", "9"]
    assert index_of == {"a": {0: 1, 1: 3}, "b": {0: 4, 1: 0}}
    ints = Dataset.from_dict({"label": [7, 30]})
    assert join_vocabularies(["7", "30"], ints, {"b": numbers}, "label")[1] == {"b": {0: 2, 1: 0}}


def test_evaluation_counts_what_it_says():
    train = coloured_images(["red", "green", "blue"] * 20, ["red", "green", "blue"], 0)
    test = coloured_images(["red", "green", "blue"] * 8, ["red", "green", "blue"], 1)
    # Another numbering, a class that train lacks, an image that is broken.
    other = coloured_images(["blue", "red", "white", "red", "red"], ["white", "blue", "red"], 2, bad=(4,))
    noisy = coloured_images(["green", "blue"], ["blue", "green"], 3, corruption=["Fog", "snow"])
    sets = {"odd": other, "noisy": noisy}
    result = evaluate_linear(tiny_bench(), train, test, out_of_distribution=sets)
    found = metrics_by_name(result)
    assert found["top-1", None]["raw_pixels"] == 1
    assert found["top-1 (odd)", None]["raw_pixels"] == pytest.approx(3 / 4)
    assert found["top-1 (odd, classes of test)", None]["raw_pixels"] == 1
    assert found["top-1 (test, classes of odd)", None]["raw_pixels"] == 1
    assert found["top-1 difference (odd - test)", None]["raw_pixels"] == 0
    assert found["error (noisy)", "fog"]["raw_pixels"] == 0 == found["mCE (noisy)", None]["raw_pixels"]
    # Red is two of the four readable images; of a green and a blue one, the best constant answer hits one.
    assert found["top-1 (odd)", None]["chance"] == pytest.approx(2 / 4)
    assert found["mCE (noisy)", None]["chance"] == pytest.approx(0.5 / 0.867)
    protocol = result.protocol
    assert protocol["out_of_distribution"]["odd"] == {
        "num_test": 4,
        "classes_shared_with_test": 2,
        "classes_not_in_train": ["white"],
        "images_of_classes_not_in_train": 1,
    }
    assert protocol["num_classes"] == 3 and protocol["classes_not_in_train"] == []
    assert result.skipped_images == {
        "train": 0,
        "test": 0,
        "odd (out of distribution)": 1,
        "noisy (out of distribution)": 0,
    }
    plain = evaluate_linear(tiny_bench(), train, test)
    assert plain.metrics == result.metrics[:1] and plain.details["per_class"] == result.details["per_class"]
    assert "out_of_distribution" not in plain.protocol


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"classes": ["rouge", "vert"]},
            r"odd: label_column: got classes rouge, vert, ..., accepted: some that train",
        ),
        ({"image": "picture"}, "odd: image_column: got 'image', accepted: a column of the data set"),
        ({"label": "class"}, "odd: label_column: got 'label', accepted: a column of the data set"),
        ({"corruption": [None] * 6}, "odd: corruption: got 'corruption' of null, accepted: a name in every row"),
    ],
)
def test_bad_sets_are_refused_before_any_work(change, message):
    rows = coloured_images(["red", "green"] * 10, ["red", "green"], 0)
    odd = coloured_images(["red", "green"] * 3, ["red", "green"], 1)
    if "classes" in change:
        odd = odd.cast_column("label", ClassLabel(names=change["classes"]))
    elif "corruption" in change:
        odd = odd.add_column("corruption", change["corruption"])
    else:
        odd = odd.rename_columns(change)
    bench = tiny_bench()
    bench.extract = None
    with pytest.raises(ValueError, match=message):
        evaluate_linear(bench, rows, rows, out_of_distribution={"odd": odd})
    with pytest.raises(ValueError, match="out_of_distribution: got a set named 'test', accepted: other names"):
        evaluate_linear(bench, rows, rows, out_of_distribution={"test": rows})
