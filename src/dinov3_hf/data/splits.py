"""Splits of a data set: a part held out, rows drawn by seed."""


def split_off_test(train, test, seed: int, title: str, test_split: str) -> tuple:
    """Return train and test rows; of a source without splits, which reads the same for both, a fifth becomes the test rows."""
    if train._fingerprint != test._fingerprint:
        return train, test
    print(f"{title} has no splits: a fifth of it is held out as {test_split}")
    return tuple(train.train_test_split(test_size=0.2, seed=seed).values())


def draw_rows(rows, count: int | None, seed: int):
    """Return `count` rows (all where None or there are no more), drawn by seed because many sources are sorted by class."""
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=seed).select(range(count))
