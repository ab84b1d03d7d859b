"""95% intervals of metrics: Wilson's for shares (Wilson, 1927), the bootstrap over images for others (Efron, 1979)."""

from collections.abc import Callable

import numpy as np


# The normal distribution's 97.5 % quantile: intervals of 95 %.
Z = 1.959964
NUM_DRAWS = 1000
# Drawn counts held in memory at once.
MAX_COUNTS = 10_000_000
# Separates these random numbers from others drawn with the same seed.
BOOTSTRAP = 0xB007

# From sums [D,S] of the images' statistics in D draws to the metric in each draw [D].
Metric = Callable[[np.ndarray], np.ndarray]


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval (Wilson, 1927) of the share `hits` / `images`."""
    share, square = hits / images, Z**2 / images
    centre = (share + square / 2) / (1 + square)
    half = Z * (share * (1 - share) / images + square / images / 4) ** 0.5 / (1 + square)
    # Rounding must not move the ends past the share itself, or outside of 0..1.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def bootstrap_interval(statistics: np.ndarray, metric: Metric, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile interval (95 %) of a metric over 1000 draws of N images with replacement, in fp64.

    `metric` computes it from sums of the images' `statistics` [N,S]. Means over classes are biased where a draw lacks
    a class: the interval is widened to hold the value on all images. None for a single image.
    """
    statistics = np.asarray(statistics, np.float64)
    count = len(statistics)
    if count < 2:
        return None
    generator, values = np.random.default_rng([seed, BOOTSTRAP]), []
    at_once = max(1, MAX_COUNTS // count)
    for start in range(0, NUM_DRAWS, at_once):
        # How often each image is drawn.
        times = generator.multinomial(count, np.full(count, 1 / count), size=min(at_once, NUM_DRAWS - start))
        values.append(metric(times.astype(np.float64) @ statistics))
    low, high = np.nanquantile(np.concatenate(values), (0.025, 0.975))
    value = float(metric(statistics.sum(0, keepdims=True))[0])
    return min(float(low), value), max(float(high), value)


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Return the bootstrap interval of the mean of one value [N] for each image."""
    values = np.asarray(values, np.float64)
    return bootstrap_interval(values[:, None], lambda sums: sums[:, 0] / len(values), seed)


def mean_iou(sums: np.ndarray) -> np.ndarray:
    """Return the mean IoU [D] from sums [D,3K] of the K classes' hits, true pixels and predicted pixels.

    Classes without a true pixel do not count.
    """
    hits, labelled, predicted = np.split(sums, 3, axis=1)
    present = labelled > 0
    union = np.where(present, labelled + predicted - hits, 1)
    return np.where(present, hits / union, 0).sum(1) / np.maximum(present.sum(1), 1)


def pixel_accuracy(sums: np.ndarray) -> np.ndarray:
    """Return the share of right pixels [D] from sums [D,3K] as those of `mean_iou`."""
    hits, labelled, _ = np.split(sums, 3, axis=1)
    return hits.sum(1) / labelled.sum(1)


def with_interval(interval: tuple[float, float] | None) -> dict[str, list[float]]:
    """Return the entry of a metric for an interval; none if there is no interval, or not a finite one."""
    return {} if interval is None or not np.isfinite(interval).all() else {"interval": list(interval)}
