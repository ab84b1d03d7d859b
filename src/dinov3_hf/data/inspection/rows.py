"""Rows of a source to inspect: its splits and columns, a place to continue from, and names a person can find."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import Failed, Refused
from ..columns import find_image_column
from ..retries import with_retries
from ..sources.readings import split_reading
from ..streams import is_hub_id, load_source
from .facts import plain


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from ..sources.account import Account

# A split that no source has; the name of the rows of a source without splits.
NO_SPLIT, ALL_ROWS = "no such split", "all"


@dataclass
class Split:
    """Rows of a split, opened undecoded, and what its columns are."""

    name: str
    rows: "Dataset | IterableDataset"
    image_column: str
    label_column: str | None
    columns: dict[str, str]
    class_names: list[str] | None = None
    # Rows, where they are known before they are read.
    total: int | None = None

    @property
    def files(self) -> list[str]:
        """Return the Parquet file of each shard of a stream; empty for anything else."""
        layer = getattr(self.rows, "_ex_iterable", None)
        while (inner := getattr(layer, "ex_iterable", None)) is not None:
            layer = inner
        files = [str(file) for file in getattr(layer, "kwargs", {}).get("files", [])]
        return files if len(files) == getattr(self.rows, "num_shards", 0) else []

    def label_of(self, row: dict) -> str | int | None:
        """Return the class of a row by its name; None if it has none."""
        value = row.get(self.label_column or "")
        if self.class_names is not None:
            return self.class_names[value] if value is not None and value >= 0 else None
        return value


def open_splits(
    account: "Account", split: str | None, image_column: str | None, label_column: str | None, num_images: int
) -> tuple[list[Split], dict[str, str]]:
    """Open the splits of a source, or one of them; returns them, and why others were not read, by their names.

    `account` is what `describe_source` says of the source; it gets the splits if it lacks them. Raises what
    `load_source` raises, and `Refused` if no split has images.
    """
    opened: list[Split] = []
    refused: dict[str, str] = {}
    source = account.source
    if split is None and not account.splits:
        names = split_names(source, image_column, num_images)
        account.splits = dict.fromkeys(names) if names != [ALL_ROWS] else {}
    names = [split] if split is not None else list(account.splits) or [ALL_ROWS]
    for name in names:
        try:
            opened.append(_open_split(source, name, image_column, label_column, num_images))
            known = account.rows if name == ALL_ROWS else account.splits.get(name)
            opened[-1].total = len(opened[-1].rows) if hasattr(opened[-1].rows, "__len__") else known
        except Refused as error:
            # A table without images next to splits of images, such as pairs of their rows.
            if len(names) == 1 or "no image column" not in str(error):
                raise
            refused[name] = plain(str(error))
    if not opened:
        raise Refused(f"data: no split of {source!r} has images ({', '.join(names)}), accepted: images")
    return opened, refused


def split_names(source: str, image_column: str | None, num_images: int) -> list[str]:
    """Return the splits of a source; `ALL_ROWS` alone if it has none."""
    is_named = os.path.exists(source) or source.split(":")[0] == "scenes" or split_reading(source)[0] is not None
    if not is_named and is_hub_id(source):
        from datasets import get_dataset_split_names

        repository, _, config = source.partition(":")
        try:
            return list(get_dataset_split_names(repository, config or None))
        except Exception:
            # Refused in the words of `load_source`.
            load_source(source, num_images=num_images)
            raise
    try:
        load_source(source, NO_SPLIT, image_column=image_column, num_images=num_images)
    except Refused as error:
        # The refusal of a split that is not there lists those that are.
        listed = re.match(r"split: got .*, accepted: ([^(]+)", str(error))
        if listed is not None:
            return [name.strip() for name in listed[1].split(",")]
        raise
    # A source without splits has the same rows under any name.
    return [ALL_ROWS]


def _open_split(source: str, name: str, image_column: str | None, label_column: str | None, num_images: int) -> Split:
    """Open a split with the columns that are read: a mask or a depth map may be larger than its image."""
    from datasets import ClassLabel

    rows = load_source(source, name, image_column=image_column, num_images=num_images)
    features = dict(rows.features or {})
    image = find_image_column(rows, image_column)
    columns = {column: getattr(feature, "dtype", type(feature).__name__) for column, feature in features.items()}
    if label_column is not None and label_column not in columns:
        raise Refused(f"label_column: got {label_column!r}, accepted: one of the columns ({', '.join(columns)})")
    label = label_column or find_label_column(features, image)
    wanted = [column for column in (label, "__key__", "__url__") if column is not None and column in columns]
    if set(columns) - {image, *wanted}:
        rows = load_source(source, name, image_column=image, num_images=num_images, columns=wanted)
    feature = features.get(label or "")
    try:
        next(iter(rows), None)
    except Exception as error:
        raise Refused(f"data: {source!r} cannot be read: {plain(str(error))}, accepted: images") from error
    return Split(name, rows, image, label, columns, feature.names if isinstance(feature, ClassLabel) else None)


def find_label_column(features: dict[str, Any], image: str) -> str | None:
    """Return the only column of declared classes, or if there is none the only one of whole numbers or texts."""
    from datasets import ClassLabel, Value

    others = {name: feature for name, feature in features.items() if name != image and not name.startswith("__")}
    declared = [name for name, feature in others.items() if isinstance(feature, ClassLabel)]
    values = [
        name
        for name, feature in others.items()
        if isinstance(feature, Value) and ("int" in feature.dtype or "string" in feature.dtype)
    ]
    candidates = declared or values
    return candidates[0] if len(candidates) == 1 else None


@dataclass
class Place:
    """Where a pass stands: the next split, its shard, the row in the shard, and the stream's own state there."""

    split: int = 0
    shard: int = 0
    row: int = 0
    in_split: int = 0
    source: dict | None = None


def read_rows(split: Split, place: Place) -> Iterator[tuple[str, dict]]:
    """Yield the rows of a split from a place on, with names a person can find; the place moves with them."""
    from datasets import IterableDataset

    rows = split.rows
    if not isinstance(rows, IterableDataset):
        while place.row < len(rows):
            row = rows[place.row]
            name = name_of(split, row, place)
            place.row, place.in_split = place.row + 1, place.in_split + 1
            yield name, row
        return
    while place.shard < rows.num_shards:
        for row, state in _read_shard(rows, place):
            name = name_of(split, row, place)
            place.row, place.in_split, place.source = place.row + 1, place.in_split + 1, state
            yield name, row
        place.shard, place.row, place.source = place.shard + 1, 0, None


def _read_shard(rows: "IterableDataset", place: Place) -> Iterator[tuple[dict, dict]]:
    """Yield the rows of a shard from a place on, with the stream's state after each; tries again as training does."""
    stream: Any = None
    reader: Any = None

    def read() -> dict | None:
        nonlocal stream, reader
        try:
            if reader is None:
                stream = rows.shard(num_shards=rows.num_shards, index=place.shard)
                if place.source is not None:
                    stream.load_state_dict(place.source)
                reader = iter(stream)
            return next(reader, None)
        except Exception:
            # A generator that raised is finished: the next try starts at the place again.
            reader = None
            raise

    while True:
        try:
            row = with_retries(read, "data")
        except (Failed, Refused, MemoryError):
            raise
        except Exception as error:
            reason = plain(f"{type(error).__name__}: {error}")
            raise Failed(
                f"data: row {place.row} of shard {place.shard} cannot be read: {reason}; what was counted is kept: "
                "the same command goes on from there"
            ) from error
        if row is None:
            return
        yield row, stream.state_dict()


def name_of(split: Split, row: dict, place: Place) -> str:
    """Return a name by which a person finds a row: file and key of a tar, file and row of a Parquet, or a path."""
    image = row[split.image_column]
    path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
    if "__key__" in row:
        return plain(f"{row.get('__url__', '')}: {row['__key__']}.{split.image_column}".removeprefix(": "))
    if isinstance(path, str) and (isinstance(image, str) or image.get("bytes") is None):
        return plain(path)
    where = f"{split.files[place.shard]}: row {place.row}" if split.files else f"{split.name}: row {place.in_split}"
    return plain(where + (f" ({path})" if path else ""))
