"""What a source was taken for, in a few lines, without reading all of it."""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Refused
from ...terminal import is_first_process
from ..columns import find_image_column, holds_bytes
from .folders import builder_of, local_files
from .layouts import layout_of
from .opening import choose_splits
from .readings import split_reading
from .split_names import ALL


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# The account takes no longer, and looks at no more images, spread over so many shards.
SECONDS = 3.0
LOOKED_AT = 200
SHARDS = 8
SCENES = "rendered scenes"
REMOTE = ("files at a URL", "data set of the hub")
KINDS = {"parquet": "Parquet files", "webdataset": "WebDataset tars"}


@dataclass
class Account:
    """A source as it was understood; None is what only a full pass would tell."""

    source: str
    split: str
    kind: str
    # Rows of each split; empty if the source has no splits.
    splits: dict[str, int | None] = field(default_factory=dict)
    rows: int | None = None
    # The role of each column: images, masks, classes, boxes, text, ...
    columns: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    # Images whose headers were looked at, how many of them cannot be read, smallest and largest (height, width).
    looked_at: int = 0
    unreadable: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    # Printed when the source is opened, and thus not among the lines.
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the account as lines to print."""
        named = ", ".join(f"{name} {_count(rows)}" for name, rows in self.splits.items())
        lines = [
            f"data: {self.source}: {self.kind}, split {self.split}" + (f" of {named}" if named else " (no splits)")
        ]
        columns = ", ".join(f"{name} ({role})" for name, role in self.columns.items())
        lines.append(f"  rows {_count(self.rows)}" + (f"; columns {columns}" if columns else ""))
        if self.classes:
            shown = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
            lines.append(f"  {len(self.classes)} classes: {shown}")
        if self.smallest and self.largest:
            sizes = [f"{width}x{height}" for height, width in dict.fromkeys((self.smallest, self.largest))]
            lines.append(f"  {self.looked_at} images looked at: {' to '.join(sizes)}, {self.unreadable} unreadable")
        elif self.looked_at:
            lines.append(f"  {self.looked_at} images looked at, {self.unreadable} unreadable")
        if self.skipped:
            lines.append("  skipped: " + ", ".join(f"{count} {reason}" for reason, count in self.skipped.items()))
        return lines


def _count(rows: int | None) -> str:
    return "unknown" if rows is None else f"{rows:,}"


def describe_source(
    source: str, split: str = "train", rows: "Dataset | IterableDataset | None" = None, image_column: str | None = None
) -> Account:
    """Describe a source in at most three seconds: from the listing, schemas and footers, and headers of some images.

    `rows` are what `load_source` returned for it: without them neither columns nor images are looked at. Raises
    `Refused` for a folder that `load_source` refuses.
    """
    end = time.monotonic() + SECONDS
    account = _of_files(source, split, end)
    if rows is not None:
        from datasets import Dataset

        _describe_rows(account, rows, image_column, end)
        if isinstance(rows, Dataset):
            account.rows = len(rows)
            if account.split in account.splits:
                account.splits[account.split] = len(rows)
    return account


def print_account(source: str, split: str, rows: "Dataset | IterableDataset", image_column: str | None = None) -> None:
    """Print what a source was taken for, from the first process of a run: the opening lines of every verb."""
    if is_first_process():
        print(*describe_source(source, split, rows, image_column).lines(), sep="\n")


def _of_files(source: str, split: str, end: float) -> Account:
    """Describe what the names of files and the footers of Parquet files tell."""
    if source.split(":")[0] == "scenes":
        return Account(source, split, SCENES)
    if "://" in source:
        return Account(source, split, REMOTE[0])
    reading, name = (None, source) if os.path.exists(source) else split_reading(source)
    path = Path(name).expanduser()
    if os.path.isdir(path):
        layout = layout_of(path, name, reading, seconds=SECONDS / 2)
        counts = {
            split_name: _rows_of_files(layout.builder, [str(path / file) for file in files], end)
            for split_name, files in layout.splits.items()
        }
        if not layout.complete:
            counts = dict.fromkeys(counts)
        account = Account(source, split, layout.kind, skipped=layout.skipped, notes=layout.notes)
        account.splits = {split_name: rows for split_name, rows in counts.items() if split_name is not None}
        chosen = choose_splits(layout, split, name)
        read = [counts[split_name] for split_name in chosen]
        account.split = split if split == ALL or chosen[0] is None else chosen[0]
        account.rows = None if not read or None in read else sum(rows for rows in read if rows is not None)
        return account
    files = local_files(str(path))
    if files:
        builder = builder_of(files, source)
        account = Account(source, split, KINDS[builder])
        account.rows = (
            _rows_of_files(builder, files, end) if len({os.path.dirname(file) for file in files}) == 1 else None
        )
        return account
    return Account(source, split, REMOTE[1])


def _rows_of_files(builder: str, files: list[str], end: float) -> int | None:
    """Return the rows of files: of Parquet from their footers, while there is time; None if unknown."""
    if builder == "images":
        return len(files)
    if builder != "parquet":
        return None
    import pyarrow.parquet as pq

    total = 0
    for file in files:
        if time.monotonic() > end:
            return None
        try:
            total += pq.read_metadata(file).num_rows
        except (OSError, ValueError):
            # A broken file: told when it is read.
            return None
    return total


def _describe_rows(account: Account, rows: "Dataset | IterableDataset", image_column: str | None, end: float) -> None:
    """Add the columns, classes and sizes of images of opened rows."""
    from datasets import IterableDataset

    features = rows.features or {}
    name: str | None
    try:
        name = find_image_column(rows, image_column)
    except Refused:
        name = None
    for column, feature in features.items():
        account.columns[column] = "images" if column == name else _role(column, feature)
        account.classes = account.classes or _classes(feature)
    is_stream = isinstance(rows, IterableDataset)
    if account.kind in REMOTE:
        splits = rows.info.splits or {}
        account.splits = account.splits or {split: about.num_examples for split, about in splits.items()}
        account.rows = account.splits.get(account.split)
    if name is None or (is_stream and account.kind in (*REMOTE, SCENES)):
        # A look at images could take longer than there is; scenes would be rendered for it.
        return
    _look_at_images(account, rows, name, end)


def _role(column: str, feature: Any) -> str:
    """Return what a column holds, from its type and name."""
    from datasets import ClassLabel, Image

    if isinstance(feature, Image):
        return next((f"{word}s" for word in ("mask", "depth", "instance", "label") if word in column), "images")
    if isinstance(feature, ClassLabel):
        return "classes"
    if isinstance(feature, dict) and {"bbox", "boxes"} & set(feature):
        return "boxes"
    if holds_bytes(feature):
        return "bytes"
    dtype = str(getattr(feature, "dtype", ""))
    return "text" if "string" in dtype else dtype if dtype and dtype not in ("dict", "list") else "records"


def _classes(feature: Any) -> list[str]:
    from datasets import ClassLabel

    if isinstance(feature, dict) and {"bbox", "boxes"} & set(feature):
        return next((names for inner in feature.values() if (names := _classes(getattr(inner, "feature", inner)))), [])
    return list(feature.names or []) if isinstance(feature, ClassLabel) else []


def _look_at_images(account: Account, rows: "Dataset | IterableDataset", name: str, end: float) -> None:
    """Read the headers of images spread over the rows, while there is time."""
    from ..pixels import BadImage, read_size

    sizes = []
    for value in _spread(rows, name, end):
        account.looked_at += 1
        try:
            sizes.append(read_size(value))
        except BadImage:
            account.unreadable += 1
        if time.monotonic() > end:
            break
    if sizes:
        account.smallest = min(sizes, key=lambda size: size[0] * size[1])
        account.largest = max(sizes, key=lambda size: size[0] * size[1])


def _spread(rows: "Dataset | IterableDataset", name: str, end: float) -> Iterator[Any]:
    """Yield undecoded images of rows spread over a data set, or over the shards of a local stream."""
    from datasets import Dataset

    if isinstance(rows, Dataset):
        only = rows.select_columns([name])
        count = min(LOOKED_AT, len(only))
        for index in range(count):
            yield only[index * len(only) // count][name]
        return
    if rows.features is None:
        return
    shards = min(SHARDS, rows.num_shards)
    for index in range(shards):
        if time.monotonic() > end:
            return
        shard = rows.shard(rows.num_shards, index * rows.num_shards // shards)
        for row in itertools.islice(shard, LOOKED_AT // shards):
            yield row[name]
