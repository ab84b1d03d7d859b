"""Open a local folder as what it was taken for."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...errors import Refused
from .folders import image_rows, load_files
from .layouts import layout_of
from .metadata import metadata_columns
from .readings import Layout, say
from .split_names import ALL, pick_split


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def open_folder(
    path: Path,
    source: str,
    reading: str | None,
    split: str,
    streaming: bool,
    wanted: Sequence[str] | None,
    **options: Any,
) -> "Dataset | IterableDataset":
    """Open a split of a folder; `options` are those of the builder of Parquet files.

    Images and saved data sets give a `Dataset`: their rows hold paths, or are mapped from disk. Masks and boxes are
    read only if `mask` and `objects` are among the `wanted` columns, or all are.
    """
    layout = layout_of(path, source, reading)
    say(source, layout.notes)
    chosen = choose_splits(layout, split, source)
    if layout.builder == "saved":
        return _saved(layout, chosen)
    if layout.builder != "images":
        files = [str(path / file) for name in layout.splits for file in layout.splits[name]]
        return load_files(layout.builder, files, source, split, streaming, str(path), False, **options)
    return _images(layout, chosen, source, wanted)


def choose_splits(layout: Layout, split: str, source: str) -> list[str | None]:
    """Return the names of the splits to read: the one asked for, all, or None where the folder has no splits."""
    names = layout.names()
    if not names or split == ALL:
        return list(layout.splits)
    return [pick_split(names, split, source, "folders " if layout.builder == "images" else "")]


def _saved(layout: Layout, chosen: list[str | None]) -> "Dataset":
    from datasets import concatenate_datasets, load_from_disk

    parts = [load_from_disk(str(layout.root / layout.splits[name][0])) for name in chosen]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _images(layout: Layout, chosen: list[str | None], source: str, wanted: Sequence[str] | None) -> "Dataset":
    from datasets import ClassLabel, Image

    files = [file for name in chosen for file in layout.splits[name]]
    columns: dict[str, tuple[list, Any]] = {}
    folders = tuple(f"{name}/" for name in chosen if name is not None)
    tables = [table for table in layout.tables if not folders or "/" not in table or table.startswith(folders)]
    if tables:
        files, columns, notes = _with_tables(layout, files, tables, source)
        say(source, notes)
    if layout.unclear_labels and (wanted is None or "label" in wanted):
        raise Refused(layout.unclear_labels)
    notes = [
        f"images alone are read, without their {what}"
        for what, column, is_there in (
            ("masks", "mask", layout.masks),
            ("boxes", "objects", layout.read_objects is not None),
        )
        if is_there and wanted is not None and column not in wanted
    ]
    say(source, notes)
    if layout.masks and (wanted is None or "mask" in wanted):
        columns["mask"] = ([str(layout.root / layout.masks[file]) for file in files], Image())
    if layout.labels and not columns and all(file in layout.labels for file in files):
        names = sorted({layout.labels[file] for file in files})
        number = {name: index for index, name in enumerate(names)}
        columns["label"] = ([number[layout.labels[file]] for file in files], ClassLabel(names=names))
    if layout.read_objects is not None and (wanted is None or "objects" in wanted):
        columns["objects"] = layout.read_objects(files)
    if not files:
        raise Refused(f"data: {source!r} has no images in this split, accepted: {', '.join(layout.names())}")
    return image_rows(layout.root, files, columns)


def _with_tables(
    layout: Layout, files: list[str], tables: list[str], source: str
) -> tuple[list[str], dict[str, tuple[list, Any]], list[str]]:
    """Read metadata; a table above the splits may name the images of all of them."""
    everything = [file for of_split in layout.splits.values() for file in of_split]
    is_above = any(PurePosixPath(table).parent == PurePosixPath(".") for table in tables) and None not in layout.splits
    kept, columns, notes = metadata_columns(layout.root, everything if is_above else files, tables, source)
    if is_above:
        inside = set(files)
        places = [place for place, file in enumerate(kept) if file in inside]
        kept = [kept[place] for place in places]
        columns = {name: ([values[place] for place in places], kind) for name, (values, kind) in columns.items()}
    return kept, columns, notes
