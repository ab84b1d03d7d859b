"""Ways to read a folder, what one was taken for, and how that is said."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...terminal import is_first_process


# How a folder may be told to be read, as "classes:FOLDER".
READINGS = {
    "classes": "every folder in it is a class, whatever it is called",
    "splits": "only folders called like splits are read",
    "images": "images alone, without labels, masks and boxes",
    "masks": "images and their masks",
    "boxes": "images and their boxes",
}


@dataclass
class Layout:
    """What a folder holds: its files by split (None: it has no splits), and what belongs to each image."""

    kind: str
    root: Path
    builder: str
    splits: dict[str | None, list[str]]
    labels: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    # Reads the objects of images: one value an image, and the column's feature.
    read_objects: Callable[[list[str]], tuple[list, Any]] | None = None
    tables: list[str] = field(default_factory=list)
    # Further files that are read: those of boxes, classes and lists.
    used: list[str] = field(default_factory=list)
    # Why labels are refused where they are wanted; without them, nothing is unclear.
    unclear_labels: str = ""
    # What a person must know whatever they do: said when the source is opened.
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    complete: bool = True

    def names(self) -> list[str]:
        """Return the splits' names."""
        return [name for name in self.splits if name is not None]


def split_reading(source: str) -> tuple[str | None, str]:
    """Return how a folder is to be read, if its name begins so ("classes:FOLDER"), and the folder."""
    reading, colon, folder = source.partition(":")
    return (reading, folder) if colon and reading in READINGS and "://" not in source else (None, source)


_SAID: set[str] = set()


def say(source: str, notes: Sequence[str]) -> None:
    """Print what a person must know of a source, each line once and from the first process only."""
    for note in notes:
        line = f"data: {source}: {note}"
        if line not in _SAID and is_first_process():
            print(line, file=sys.stderr)
        _SAID.add(line)
