"""Byte-identical images, from digests of their encoded bytes in a file."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np


# Groups of byte-identical images whose names are written: a source may be one image a million times.
MAX_GROUPS, MAX_IN_GROUP = 10_000, 10


def find_duplicates(hashes: Path, names: Path, file: Path, splits: list[str], hashed: list[int]) -> dict[str, Any]:
    """Return how many images are there more than once, within splits and in two of them, and write their names.

    `hashes` holds 8 bytes an image and `names` a line, in the same order: `hashed` images of each of the splits.
    """
    values = np.fromfile(hashes, np.uint64)
    order = np.argsort(values, kind="stable")
    values = values[order]
    same = values[1:] == values[:-1]
    # Most images are there once: only the others are looked at any further.
    is_repeated = np.append(same, False) | np.append(False, same) if len(values) else np.zeros(0, bool)
    order, values = order[is_repeated], values[is_repeated]
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.zeros(0, int)
    ends = np.append(starts, len(values))[1:]
    split_of = np.searchsorted(np.cumsum(hashed), order, side="right")
    # How often each repeated image is in each split.
    counts = [
        np.add.reduceat(split_of == number, starts, dtype=np.int64) if len(values) else np.zeros(0, int)
        for number in range(len(splits))
    ]
    limits = zip(starts[:MAX_GROUPS], ends[:MAX_GROUPS], strict=True)
    _write_groups(names, file, [order[start : min(end, start + MAX_IN_GROUP)] for start, end in limits])
    within = {name: int(np.maximum(count - 1, 0).sum()) for name, count in zip(splits, counts, strict=True)}
    pairs = combinations(range(len(splits)), 2)
    in_both = {f"{splits[a]} and {splits[b]}": int(((counts[a] > 0) & (counts[b] > 0)).sum()) for a, b in pairs}
    return {"images_more_than_once": len(starts), "repeated_within": within, "in_both": in_both}


def _write_groups(names: Path, file: Path, groups: list[np.ndarray]) -> None:
    """Write the names of each group's images in one line, separated by tabs; no file without groups."""
    file.unlink(missing_ok=True)
    if not groups:
        return
    wanted = {int(index) for group in groups for index in group}
    with open(names, encoding="utf-8") as lines:
        kept = {index: line.rstrip("\n") for index, line in enumerate(lines) if index in wanted}
    groups.sort(key=lambda group: int(group[0]))
    with open(file, "w", encoding="utf-8") as output:
        for group in groups:
            output.write("\t".join(kept[int(index)] for index in group) + "\n")
