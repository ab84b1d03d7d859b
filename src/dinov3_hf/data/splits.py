"""Splits of a data set: a held-out part, and random rows."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset


def split_off_test(
    train: "Dataset", test: "Dataset", seed: int, title: str, test_split: str
) -> tuple["Dataset", "Dataset"]:
    """Return train and test rows; if both are the same rows (a source without splits), hold out a random fifth."""
    if train._fingerprint != test._fingerprint:
        return train, test
    print(f"{title} has no splits: a fifth of it is held out as {test_split}")
    return tuple(train.train_test_split(test_size=0.2, seed=seed).values())


def draw_rows(rows: "Dataset", count: int | None, seed: int) -> "Dataset":
    """Return `count` random rows, or all if there are fewer or `count` is None: sources may be sorted by class."""
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=seed).select(range(count))
