"""Columns of a data set: which one holds what, and their values."""

from ..errors import Refused
from .folders import IMAGE_EXTENSIONS


def check_column(rows, name: str, field: str) -> None:
    """Raise `Refused`, listing the columns, where a data set has no column of this name."""
    if name not in rows.column_names:
        raise Refused(f"{field}: got {name!r}, accepted: a column of the data set ({', '.join(rows.column_names)})")


def undecoded(rows):
    """Return a data set whose image columns give their bytes or paths."""
    from datasets import Image

    for column, feature in rows.features.items():
        if isinstance(feature, Image) and feature.decode:
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def find_image_column(rows, image_column: str | None) -> str:
    """Return the column that holds the images; raises `Refused`, listing the columns, if it is not plain which."""
    from datasets import Image

    names = list(rows.column_names or next(iter(rows)))
    listed = ", ".join(names)
    if image_column is not None:
        if image_column not in names:
            raise Refused(f"image_column: got {image_column!r}, accepted: a column of the data set ({listed})")
        return image_column
    features = rows.features or {}
    found = [name for name in names if isinstance(features.get(name), Image)]
    found = found if len(found) == 1 else [name for name in found if name == "image"] or found
    found = found or [name for name in names if name.lower() in IMAGE_EXTENSIONS]
    if len(found) != 1:
        have = "no image column" if not found else f"several image columns ({', '.join(found)})"
        raise Refused(f"image_column: the data set has {have}, accepted: one of its columns ({listed})")
    return found[0]


def named_values(rows, column: str, field: str, accepted: str) -> list[str | int | None]:
    """Return a column's value in every row: the name of a declared class, a number, a text, None where it is missing.

    `datasets` writes -1 where a declared class is missing. Raises `Refused`, saying what is `accepted`, for anything else
    and for a column without a value.
    """
    from datasets import ClassLabel, Value

    check_column(rows, column, field)
    feature = rows.features[column]
    values = list(rows[column]) if isinstance(feature, ClassLabel | Value) else [...]
    if not all(isinstance(value, int | str | None) for value in values) or not set(values) - {None}:
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise Refused(f"{field}: got {column!r} of {kind}, accepted: {accepted}")
    if isinstance(feature, ClassLabel):
        return [feature.names[value] if value is not None and value >= 0 else None for value in values]
    return values


def read_vocabulary(train, test, column: str) -> tuple[list[str], dict, dict]:
    """Return the class names of a label column and, for each data set, the mapping from its values to class indices.

    ClassLabel columns are matched by name (two folders may number their classes differently); of any other column the
    sorted values of both data sets are taken. Raises `Refused` for a column that is missing, holds no single values,
    or marks rows as unlabelled.
    """
    from datasets import ClassLabel, Value

    names, readings = [], []
    for rows in (train, test):
        check_column(rows, column, "label_column")
        feature = rows.features[column]
        values = rows.unique(column) if isinstance(feature, ClassLabel | Value) else []
        if not values or not all(isinstance(value, int | str) for value in values):
            accepted = "a column with one class a row (ClassLabel, int or text)"
            raise Refused(f"label_column: got {column!r}, accepted: {accepted}")
        if isinstance(feature, ClassLabel) and min(values) < 0:
            raise Refused(f"label_column: {column!r} holds unlabelled rows (-1), accepted: splits that have labels")
        named = dict(enumerate(feature.names)) if isinstance(feature, ClassLabel) else {v: v for v in values}
        readings.append(named)
        names += named.values()
    declared = isinstance(train.features[column], ClassLabel)
    # Declared classes keep their order; others are sorted, numbers before texts.
    names = list(dict.fromkeys(names if declared else sorted(names, key=lambda name: (isinstance(name, str), name))))
    indices = {name: index for index, name in enumerate(names)}
    return [str(name) for name in names], *({v: indices[name] for v, name in reading.items()} for reading in readings)
