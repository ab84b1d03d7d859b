"""Splits by the names of folders and files."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from ...errors import Refused


SPLIT_NAMES = ("train", "training", "validation", "valid", "val", "test", "testing", "dev", "eval", "evaluation")
# Names of which each stands for the others of its line.
SAME = (("train", "training"), ("validation", "val", "valid"), ("test", "testing"))
# Files only; the last three are roles of rows in retrieval and matching.
FILE_NAMES = (*SPLIT_NAMES, "gallery", "query", "pairs")
ALL = "all"


def is_split(name: str) -> bool:
    """Say whether a folder is called like a split, in any capitals; a year may follow (train2017)."""
    return _plain(name) in SPLIT_NAMES


def _plain(name: str) -> str:
    return re.sub(r"[-_]?(19|20)\d\d$", "", name.lower())


def split_of_file(name: str) -> str | None:
    """Return the split that a file's name says: one of its words (train-0001.parquet, my_test.tar), or None."""
    words = re.findall(r"[a-z]+", PurePosixPath(name).name.partition(".")[0].lower())
    splits = list(dict.fromkeys(word for word in words if word in SPLIT_NAMES))
    if words and words[0] in FILE_NAMES:
        return words[0]
    return splits[0] if len(splits) == 1 else None


def split_of_folders(file: str) -> str | None:
    """Return the outermost folder of a relative path that is called like a split, or None."""
    return next((part for part in PurePosixPath(file).parts[:-1] if is_split(part)), None)


def pick_split(names: Iterable[str], asked: str, source: str, what: str = "") -> str:
    """Return the split among `names` that is asked for: by its name, in other capitals, or by a name of the same.

    Raises `Refused`, listing the splits, if there is none or if several would do.
    """
    names = list(names)
    meant = matching(names, asked)
    if len(meant) != 1:
        raise Refused(f"split: got {asked!r}, accepted: {', '.join(sorted(names))} ({what}of {source})")
    return meant[0]


def matching(names: list[str], asked: str) -> list[str]:
    """Return the splits that `asked` may mean: itself, else in other capitals, else by a name of the same."""
    if asked in names:
        return [asked]
    group = next((line for line in SAME if _plain(asked) in line), ())
    plain = [name for name in names if _plain(name) == _plain(asked)]
    return plain or [name for name in names if _plain(name) in group]
