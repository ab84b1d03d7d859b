"""Columns of a data set: which one holds what, and their values."""

from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import Refused
from .folders import IMAGE_EXTENSIONS


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Rows = TypeVar("Rows", "Dataset", "IterableDataset")


def check_column(rows: "Dataset", name: str, field: str) -> None:
    """Raise `Refused`, listing the columns, if a data set has no column of this name."""
    if name not in rows.column_names:
        raise Refused(f"{field}: got {name!r}, accepted: a column of the data set ({', '.join(rows.column_names)})")


def undecoded(rows: Rows) -> Rows:
    """Return the data set with image columns that give bytes or paths, not decoded images."""
    from datasets import Image

    for column, feature in rows.features.items():
        if isinstance(feature, Image) and feature.decode:
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def find_image_column(rows: "Dataset | IterableDataset", image_column: str | None) -> str:
    """Return the column that holds the images; raises `Refused`, listing the columns, if there is none or several."""
    from datasets import Image

    names = list(rows.column_names or next(iter(rows)))
    listed = ", ".join(names)
    if image_column is not None:
        if image_column not in names:
            raise Refused(f"image_column: got {image_column!r}, accepted: a column of the data set ({listed})")
        return image_column
    features = rows.features or {}
    images = [name for name in names if isinstance(features.get(name), Image)]
    images = images if len(images) == 1 else [name for name in images if name == "image"] or images
    images = images or [name for name in names if name.lower() in IMAGE_EXTENSIONS]
    if len(images) != 1:
        have = "no image column" if not images else f"several image columns ({', '.join(images)})"
        raise Refused(f"image_column: the data set has {have}, accepted: one of its columns ({listed})")
    return images[0]


def named_values(rows: "Dataset", column: str, field: str, accepted: str) -> list[str | int | None]:
    """Return a column's value in every row: the name of a declared class, a number, a text, or None if it is missing.

    `datasets` writes -1 for a missing value of a declared class. Raises `Refused`, saying what is `accepted`, for
    anything else and for a column without a single value.
    """
    from datasets import ClassLabel, Value

    check_column(rows, column, field)
    feature = rows.features[column]
    values: list[Any] = list(rows[column]) if isinstance(feature, ClassLabel | Value) else [...]
    if not all(isinstance(value, int | str | None) for value in values) or not set(values) - {None}:
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise Refused(f"{field}: got {column!r} of {kind}, accepted: {accepted}")
    if isinstance(feature, ClassLabel):
        return [feature.names[value] if value is not None and value >= 0 else None for value in values]
    return values


def read_vocabulary(
    train: "Dataset", test: "Dataset", column: str
) -> tuple[list[str], dict[int | str, int], dict[int | str, int]]:
    """Return the class names of a label column and, for each data set, the mapping from its values to class indices.

    ClassLabel columns are matched by name, as two folders may number their classes differently; for any other column
    the classes are the sorted values of both data sets. Raises `Refused` for a column that is missing, does not hold
    one value a row, or marks rows as unlabelled.
    """
    from datasets import ClassLabel, Value

    all_names: list[int | str] = []
    readings: list[dict[int | str, int | str]] = []
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
        all_names += named.values()
    declared = isinstance(train.features[column], ClassLabel)
    # Declared classes keep their order; others are sorted, numbers before texts.
    names = list(
        dict.fromkeys(all_names if declared else sorted(all_names, key=lambda name: (isinstance(name, str), name)))
    )
    indices = {name: index for index, name in enumerate(names)}
    of_train, of_test = ({value: indices[name] for value, name in reading.items()} for reading in readings)
    return [str(name) for name in names], of_train, of_test
