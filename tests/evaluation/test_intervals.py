"""95% intervals against naive loops, scipy and coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import jaccard_score

from dinov3_hf.evaluation.intervals import (
    BOOTSTRAP,
    NUM_DRAWS,
    bootstrap_interval,
    mean_interval,
    mean_iou,
    pixel_accuracy,
    wilson_interval,
    with_interval,
)


@pytest.mark.parametrize("hits, images", [(0, 5), (5, 5), (1, 2), (37, 100), (999, 1000)])
def test_wilson_is_that_of_scipy(hits, images):
    expected = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, images) == pytest.approx((expected.low, expected.high), abs=1e-6)


def images_of(count, classes, seed):
    """True and predicted classes of small images; some lack a class."""
    generator = np.random.default_rng(seed)
    truth = [generator.integers(0, generator.integers(1, classes + 1), 12) for _ in range(count)]
    return truth, [np.where(generator.random(12) < 0.6, one, generator.integers(0, classes, 12)) for one in truth]


def counts_of(truth, predicted, classes):
    """Hits, true pixels and predicted pixels of each class [N,3K]."""
    pairs = zip(truth, predicted, strict=True)
    lines = [
        [((t == c) & (p == c)).sum() for c in range(classes)]
        + [(t == c).sum() for c in range(classes)]
        + [(p == c).sum() for c in range(classes)]
        for t, p in pairs
    ]
    return np.array(lines, float)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_bootstrap_is_that_of_a_naive_loop_over_draws(seed):
    count, classes = 9, 4
    truth, predicted = images_of(count, classes, seed)
    statistics = counts_of(truth, predicted, classes)
    times = np.random.default_rng([seed, BOOTSTRAP]).multinomial(count, np.full(count, 1 / count), size=NUM_DRAWS)
    ious, accuracies = [], []
    for draw in times:
        rows = [row for row, often in enumerate(draw) for _ in range(often)]
        t, p = (np.concatenate([values[row] for row in rows]) for values in (truth, predicted))
        ious.append(jaccard_score(t, p, labels=np.unique(t), average="macro", zero_division=0))
        accuracies.append((t == p).mean())
    for metric, values in ((mean_iou, ious), (pixel_accuracy, accuracies)):
        whole = metric(statistics.sum(0)[None])[0]
        low, high = np.quantile(values, (0.025, 0.975))
        assert bootstrap_interval(statistics, metric, seed) == pytest.approx((min(low, whole), max(high, whole)))


def test_large_sets_are_drawn_in_parts_of_the_same_law(monkeypatch):
    values = np.random.default_rng(0).random(300)
    whole = mean_interval(values)
    monkeypatch.setattr("dinov3_hf.evaluation.intervals.MAX_COUNTS", 300 * 100)
    assert mean_interval(values) == pytest.approx(whole, abs=0.01)
    error = values.std() / 300**0.5
    assert whole == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)
    assert mean_interval(values) == mean_interval(values) != mean_interval(values, seed=1)


def test_the_interval_of_a_mean_holds_the_truth_in_95_of_100_sets():
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        low, high = mean_interval(generator.random(60), seed)
        held += low <= 0.5 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_one_image_has_no_interval():
    assert mean_interval(np.array([0.3])) is None and with_interval(None) == {}
    assert with_interval((float("nan"), 1.0)) == {} and with_interval((0.1, 0.2)) == {"interval": [0.1, 0.2]}
    assert mean_interval(np.array([0.3, 0.3])) == pytest.approx((0.3, 0.3))
