"""Accuracy by group against a naive loop, Wilson's intervals against SciPy."""

import json
import math
import random

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from dinov3_hf.evaluation.fairness import by_group, read_groups, wilson_interval
from dinov3_hf.evaluation.result import Result


def column(values, feature=None):
    return Dataset.from_dict({"group": values}, features=feature and Features({"group": feature}))


def result_of(rows, **hits):
    hits = {"rows": rows, **{name: torch.tensor(values) for name, values in hits.items()}}
    return Result("knn", {"num_test": len(rows)}, [], skipped_images={"train": 0, "test": 1}, hits=hits)


@pytest.mark.parametrize("images", [1, 2, 7, 100, 5000])
def test_intervals_are_those_of_scipy(images):
    from scipy.stats import binomtest

    for hits in sorted({0, 1, images // 3, images - 1, images}):
        expected = binomtest(hits, images).proportion_ci(0.95, method="wilson")
        assert wilson_interval(hits, images) == pytest.approx((expected.low, expected.high), abs=1e-7)
        assert 0 <= wilson_interval(hits, images)[0] <= hits / images <= wilson_interval(hits, images)[1] <= 1


@pytest.mark.parametrize("seed", range(4))
def test_accuracies_are_those_of_a_loop(seed):
    draw = random.Random(seed)
    groups = [draw.choice(["north", "south", "west", None]) for _ in range(120)]
    # Some images of the test set could not be decoded.
    rows = sorted(draw.sample(range(120), 90))
    hits = {name: [draw.random() < share for _ in rows] for name, share in (("model", 0.7), ("random_init", 0.3))}
    result = by_group(result_of(rows, **hits), column(groups), "group")
    expected = {}
    for place, row in enumerate(rows):
        line = expected.setdefault(groups[row] or "(missing)", [])
        line.append((hits["model"][place], hits["random_init"][place]))
    assert [line["group"] for line in result.details["per_group"]] == ["north", "south", "west", "(missing)"]
    accuracy = {name: {} for name in hits}
    for line, metric in zip(result.details["per_group"], result.metrics, strict=False):
        found = expected[line["group"]]
        assert line["images"] == len(found) == result.protocol["groups"][line["group"]]
        for index, name in enumerate(hits):
            count = sum(pair[index] for pair in found)
            accuracy[name][line["group"]] = count / len(found)
            assert line[name] == metric[name] == pytest.approx(count / len(found))
            assert tuple(line["interval"][name]) == wilson_interval(count, len(found))
        assert metric["group"] == line["group"] and metric["metric"] == "accuracy" and metric["of"] == "knn"
    gap, ratio = result.metrics[4:]
    for name, values in accuracy.items():
        assert gap[name] == pytest.approx(max(values.values()) - min(values.values()))
        assert ratio[name] == pytest.approx(min(values.values()) / max(values.values()))
    assert gap["lower_is_better"] and "lower_is_better" not in ratio
    assert result.task == "fairness" and result.skipped_images == {"train": 0, "test": 1}
    assert (result.protocol["fairness_of"], result.protocol["group_column"]) == ("knn", "group")
    assert result.hits is None and result.pictures["knn by group"].height > 4 * 2 * 14
    json.dumps(result.as_dict(), allow_nan=False)


def test_groups_that_decide_everything_and_nothing():
    hits = [True, False] * 20
    aligned = by_group(result_of(range(40), model=hits), column(["a", "b"] * 20), "group")
    assert [metric["model"] for metric in aligned.metrics] == [1, 0, 1, 0]
    crossed = by_group(result_of(range(40), model=hits), column(["a", "a", "b", "b"] * 10), "group")
    assert [metric["model"] for metric in crossed.metrics] == [0.5, 0.5, 0, 1]
    wrong = by_group(result_of(range(4), model=[False] * 4), column(["a", "b"] * 2), "group")
    assert wrong.metrics[-2]["model"] == 0 and math.isnan(wrong.metrics[-1]["model"])


def test_groups_of_images_that_could_not_be_decoded_are_left_out():
    result = by_group(result_of([0, 2], model=[True, False]), column(["a", "b", "c"]), "group")
    assert [line["group"] for line in result.details["per_group"]] == ["a", "c"]


@pytest.mark.parametrize(
    "values, feature, of_row, order",
    [
        (["b", None, "a"], None, ["b", "(missing)", "a"], ["a", "b", "(missing)"]),
        ([10, 9, -1], None, ["10", "9", "-1"], ["-1", "9", "10"]),
        ([True, False], Value("bool"), ["True", "False"], ["False", "True"]),
        ([1, -1, 0], ClassLabel(names=["z", "a", "q"]), ["a", "(missing)", "z"], ["z", "a", "(missing)"]),
        ([1, None, 0], ClassLabel(names=["z", "a", "q"]), ["a", "(missing)", "z"], ["z", "a", "(missing)"]),
    ],
)
def test_groups_have_an_order(values, feature, of_row, order):
    assert read_groups(column(values, feature), "group") == (of_row, order)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            [0.5, 1.0],
            "group_column: got 'group' of (float64|double), accepted: a column of integers, texts or classes",
        ),
        ([[1], [2]], "group_column: got 'group' of List, accepted: a column of integers"),
        ([None, None], "group_column: got 'group' of null, accepted: a column of integers"),
        (list(range(101)), "group_column: got 'group' of 101 different values, accepted: 2 to 100 groups"),
        (["a", "a"], "group_column: got 'group' of 1 different values, accepted: 2 to 100 groups"),
    ],
)
def test_other_columns_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        read_groups(column(values), "group")
    with pytest.raises(ValueError, match="group_column: got 'region', accepted: a column of the data set .group."):
        read_groups(column(values), "region")


def test_results_without_hits_are_refused():
    result = result_of([0, 1], model=[True, False])
    result.hits = None
    with pytest.raises(ValueError, match="result: got knn without hits row by row, accepted: a task of top-1"):
        by_group(result, column(["a", "b"]), "group")
