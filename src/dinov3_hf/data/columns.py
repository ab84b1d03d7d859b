"""Columns of a data set: which one holds what, and their values."""

from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import Refused
from .sources.listing import IMAGE_EXTENSIONS, MAGIC


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
    """Return the column that holds the images: declared, or encoded as bytes (a column of bytes, or {bytes, path}).

    Raises `Refused`, listing the columns, if there is none or several.
    """
    from datasets import Image

    names = list(rows.column_names or next(iter(rows)))
    listed = ", ".join(names)
    features = rows.features or {}
    if image_column is not None:
        if image_column not in names:
            raise Refused(f"image_column: got {image_column!r}, accepted: a column of the data set ({listed})")
        dtype = str(getattr(features.get(image_column), "dtype", ""))
        if dtype.startswith(("int", "uint", "float", "double", "bool", "timestamp")):
            raise Refused(f"image_column: got {image_column!r} of {dtype}, accepted: images, their bytes or paths")
        return image_column
    images = [name for name in names if isinstance(features.get(name), Image)]
    images = images if len(images) == 1 else [name for name in images if name == "image"] or images
    images = images or _encoded_columns(rows, names)
    if len(images) != 1:
        have = "no image column" if not images else f"several image columns ({', '.join(images)})"
        if not images:
            have += _what_instead(features)
        raise Refused(f"image_column: the data set has {have}, accepted: one of its columns ({listed})")
    return images[0]


def _encoded_columns(rows: "Dataset | IterableDataset", names: list[str]) -> list[str]:
    """Return the columns of bytes that hold images, from their names or else from the first row."""
    features = rows.features
    named = [name for name in names if name.lower() in IMAGE_EXTENSIONS]
    if features is None:
        return named
    held = [name for name in names if holds_bytes(features[name])]
    named = [name for name in held if name.lower() in (*IMAGE_EXTENSIONS, "image", "img")]
    if len(named) == 1 or not held:
        return named
    first = next(iter(undecoded(rows)), None)
    if first is None:
        return held
    values = {name: first[name].get("bytes") if isinstance(first[name], dict) else first[name] for name in held}
    return [name for name, value in values.items() if isinstance(value, bytes) and MAGIC.match(value[:16])]


def holds_bytes(feature: Any) -> bool:
    """Say whether a column holds bytes: alone, or as the `bytes` of a record."""
    if isinstance(feature, dict):
        return "bytes" in feature and holds_bytes(feature["bytes"])
    return getattr(feature, "dtype", None) in ("binary", "large_binary", "binary_view")


def _what_instead(features: Any) -> str:
    """Return what a data set without an image column has instead, from its columns' names and types."""
    from datasets import Image

    for name, feature in features.items():
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
        if isinstance(inner, Image) or holds_bytes(inner):
            return f" (but lists of images in {name!r}: one image a row is read)"
        if isinstance(feature, dict) and {"data", "nChannels"} <= set(feature):
            return f" (but raw pixels of Spark in {name!r}: encoded images are read)"
    for name, feature in features.items():
        dtype = str(getattr(feature, "dtype", ""))
        if "string" in dtype and any(word in name.lower() for word in ("url", "uri", "link", "href")):
            return f" (but addresses in {name!r}: download them first, for example with img2dataset)"
        if "string" in dtype and any(word in name.lower() for word in ("path", "file")):
            return f" (but names of files in {name!r}: images lie in the folder that holds them)"
    return ""


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
