"""Captions of a data set: which columns hold them, and how they are read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import Refused
from .pixels import BadImage


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Columns read as captions if the user names none.
CAPTION_COLUMNS = ("caption", "captions")


def find_caption_columns(rows: "Dataset | IterableDataset", names: Sequence[str] = ()) -> list[str]:
    """Return the columns that hold captions; raises `Refused`, listing the columns, if there is none."""
    have = list(rows.column_names or next(iter(rows)))
    captions = list(names) or [name for name in CAPTION_COLUMNS if name in have]
    missing = [name for name in captions if name not in have]
    if missing or not captions:
        got = ", ".join(missing) or "none"
        raise Refused(f"caption_columns: got {got}, accepted: columns of the data set ({', '.join(have)})")
    return captions


def read_captions(row: dict, columns: Sequence[str]) -> list[str]:
    """Return a row's captions, one or a list in each column; `BadImage` if there is none, or one that is not text."""
    captions = []
    for column in columns:
        value = row[column]
        for caption in value if isinstance(value, list) else [value]:
            if caption is not None and not isinstance(caption, str):
                raise BadImage(f"{column}: a {type(caption).__name__} in place of a caption")
            if caption and caption.strip():
                captions.append(caption.strip())
    if not captions:
        raise BadImage("no caption")
    return captions
