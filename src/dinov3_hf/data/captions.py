"""Captions in a row of any data set: which columns hold them, and what they say."""

from collections.abc import Sequence

from ..errors import Refused
from .pixels import BadImage


# Columns that are taken for captions where none are named.
CAPTION_COLUMNS = ("caption", "captions")


def find_caption_columns(rows, names: Sequence[str] = ()) -> list[str]:
    """Return the columns that hold captions; raises `Refused`, listing the columns, where there is none."""
    have = list(rows.column_names or next(iter(rows)))
    found = list(names) or [name for name in CAPTION_COLUMNS if name in have]
    missing = [name for name in found if name not in have]
    if missing or not found:
        got = ", ".join(missing) or "none"
        raise Refused(f"caption_columns: got {got}, accepted: columns of the data set ({', '.join(have)})")
    return found


def read_captions(row: dict, columns: Sequence[str]) -> list[str]:
    """Return the captions of a row whose columns hold one or a list; `BadImage` where there is none, or one no text."""
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
