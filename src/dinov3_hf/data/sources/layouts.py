"""What a local folder is taken for: classes, splits, images with masks or boxes, Parquet files, tars, saved rows."""

import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...errors import Refused
from .described import described_images
from .folders import BUILDERS, files_of_splits
from .listing import IMAGE_EXTENSIONS, OTHER_IMAGES, Listing, scan, suffix_of
from .metadata import METADATA_NAMES
from .readings import Layout
from .split_names import is_split


if TYPE_CHECKING:
    import pyarrow as pa


def layout_of(root: Path, source: str, reading: str | None = None, seconds: float | None = None) -> Layout:
    """Decide what a folder is taken for; `Refused`, naming the readings, where two are possible and differ.

    After `seconds` the listing ends, and the layout is marked as not complete.
    """
    if (root / "dataset_dict.json").is_file():
        names = json.loads((root / "dataset_dict.json").read_text())["splits"]
        return Layout("data set dictionary saved to disk", root, "saved", {name: [name] for name in names})
    if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
        split = json.loads((root / "state.json").read_text()).get("_split")
        return Layout("data set saved to disk", root, "saved", {split: ["."]})
    listing = scan(root, seconds)
    tables = [file for file in listing.files if file.rpartition("/")[2] in METADATA_NAMES]
    data = [file for file in listing.named(*BUILDERS) if file not in tables]
    images = listing.images()
    layout = _layout_of_files(listing, images, data, source) if reading is None else None
    if layout is None:
        if not images:
            raise Refused(_no_images(listing, source))
        layout = _layout_of_images(listing, images, reading, source)
        layout.tables = [] if reading in ("images", "masks", "boxes") else tables
    kept = set(data) if layout.builder != "images" else {*images, *layout.tables, *layout.used}
    left = Counter(suffix_of(file) for file in listing.files if file not in kept)
    left = Counter({f".{suffix} files" if suffix else "unnamed files": count for suffix, count in left.items()})
    layout.skipped |= listing.skipped | dict(sorted(left.items()))
    layout.complete = listing.complete
    if layout.builder == "images" and not layout.labels and not layout.masks and layout.read_objects is None:
        tables_left = [file for file in listing.named("csv", "tsv", "jsonl", "xlsx") if file not in layout.tables]
        if tables_left:
            layout.notes.append(f"{tables_left[0]} is not read (metadata.csv with a column file_name would be)")
    if layout.builder == "images" and layout.read_objects is None:
        named = {file.rpartition(".")[0] for file in images}
        sides = [file for file in listing.named("txt", "json") if file.rpartition(".")[0] in named]
        if sides:
            layout.notes.append(f"{len(sides)} files with the names of images are not read ({sides[0]})")
    pictures = [name for name in left if name.split()[0].lstrip(".") in OTHER_IMAGES]
    if pictures:
        layout.notes.append("skipped: " + ", ".join(f"{left[name]} {name}" for name in pictures) + " (not readable)")
    return layout


def _no_images(listing: Listing, source: str) -> str:
    suffixes = Counter(suffix_of(file) or "unnamed" for file in listing.files)
    held = ", ".join(f"{count} .{suffix} files" for suffix, count in suffixes.most_common(4))
    held = ", ".join([*([held] if held else []), *(f"{count} {reason}" for reason, count in listing.skipped.items())])
    listed = ", ".join(IMAGE_EXTENSIONS[:14])
    return (
        f"data: no images under {listing.root}{f' ({held})' if held else ''}, accepted: files named {listed} "
        "and other images, .parquet or .tar"
    )


def _layout_of_files(listing: Listing, images: list[str], data: list[str], source: str) -> Layout | None:
    """Return the layout of a folder of Parquet files or tars; None if it is one of images."""
    if not data:
        return None
    root, notes = listing.root, []
    by_builder: dict[str, list[str]] = {}
    for file in data:
        by_builder.setdefault(BUILDERS[suffix_of(file)], []).append(file)
    parquet = by_builder.get("parquet", [])
    # Tables without images next to images or tars describe them (img2dataset writes such).
    if parquet and (images or "webdataset" in by_builder) and not _holds_images(root / parquet[0]):
        del by_builder["parquet"]
        notes.append(f"{len(parquet)} Parquet files without images are not read ({parquet[0]})")
    if not by_builder:
        listing.files = [file for file in listing.files if file not in set(data)]
        return None
    if images or len(by_builder) > 1:
        held = [f"{len(files)} .{suffix_of(files[0])} files" for files in by_builder.values()]
        held += [f"{len(images)} images"] if images else []
        patterns = [f"{source}/**/*.{suffix_of(files[0])}" for files in by_builder.values()]
        patterns += [f"images:{source}"] if images else []
        raise Refused(f"data: {source!r} holds {' and '.join(held)}, accepted: {', '.join(patterns)}")
    builder, files = next(iter(by_builder.items()))
    kind = "Parquet files" if builder == "parquet" else "WebDataset tars"
    partitions = sorted(
        {part.partition("=")[0] for file in files for part in PurePosixPath(file).parts if "=" in part}
    )
    if partitions:
        notes.append(f"folders called {', '.join(partitions)}=... give no column")
    _check_configurations(files, source)
    return Layout(kind, root, builder, files_of_splits(files, source), notes=notes)


def _check_configurations(files: list[str], source: str) -> None:
    """Refuse several folders that each have splits of their own, as the configurations of a data set have."""
    above = {
        parts[0] for parts in (PurePosixPath(file).parts for file in files) if len(parts) > 2 and is_split(parts[1])
    }
    above = {name for name in above if not is_split(name)}
    if len(above) > 1:
        accepted = ", ".join(f"{source}/{name}" for name in sorted(above))
        raise Refused(f"data: {source!r} holds several folders with splits of their own, accepted: {accepted}")


def _holds_images(file: Path) -> bool:
    """Say whether a Parquet file has a column of bytes, from its schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def is_bytes(kind: "pa.DataType") -> bool:
        if pa.types.is_struct(kind):
            return any(is_bytes(kind.field(index).type) for index in range(kind.num_fields))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return any(is_bytes(column.type) for column in pq.read_schema(file))


def _layout_of_images(listing: Listing, images: list[str], reading: str | None, source: str) -> Layout:
    if reading != "classes":
        layout = described_images(listing, images, reading, source)
        if layout is not None:
            return layout
    if reading in ("masks", "boxes"):
        raise Refused(f"data: {source!r} holds no images with {reading} of the same names")
    return _class_folders(listing.root, images, reading, source)


def _class_folders(root: Path, images: list[str], reading: str | None, source: str) -> Layout:
    """Return the layout of class folders, below splits or not."""
    tops: dict[str, list[str]] = {}
    for file in images:
        tops.setdefault(file.partition("/")[0] if "/" in file else "", []).append(file)
    splits = [name for name in tops if name and is_split(name)]
    others = [name for name in tops if name not in splits]
    notes: list[str] = []
    if reading == "splits":
        if not splits:
            raise Refused(f"data: {source!r} has no folders called like splits, accepted: train, validation, test")
        others = []
    elif reading == "classes":
        splits = []
    elif splits and others:
        is_flat = all(file.count("/") == 1 for file in images)
        # A set of vehicles: car, plane, train.
        if len(splits) > 1 or len(others) < 2 or not is_flat:
            named = ", ".join(name or "images without a folder" for name in others[:4])
            raise Refused(
                f"data: {source!r} has folders called like splits ({', '.join(splits)}) next to others ({named}), "
                f"accepted: splits:{source} (only those are read), classes:{source} (each is a class)"
            )
        notes.append(f"{splits[0]} is taken for a class, as {', '.join(others[:3])} are (splits:{source} if a split)")
        splits = []
    if not splits and reading is None:
        _check_splits_below(tops, source)
    by_split: dict[str | None, list[str]] = {name: tops[name] for name in splits} if splits else {None: images}
    labels: dict[str, str] = {}
    for split, files in by_split.items():
        inside = {file: file.removeprefix(f"{split}/") if split else file for file in files}
        nested = [file for file, name in inside.items() if "/" in name]
        if reading != "images" and len(nested) == len(files):
            labels |= {file: name.partition("/")[0] for file, name in inside.items()}
        elif nested and reading != "images":
            loose = len(files) - len(nested)
            notes.append(f"no labels: {loose} of {len(files)} images lie outside folders of classes")
    kind = "images in folders of classes" if labels else "images"
    unclear = _check_one_folder(images, source) if reading is None and not splits else ""
    return Layout(kind, root, "images", by_split, labels=labels, notes=notes, unclear_labels=unclear)


def _check_one_folder(images: list[str], source: str) -> str:
    """Refuse splits below a folder that holds everything; return why labels are unclear if folders lie below it."""
    top = os.path.commonpath([os.path.dirname(file) for file in images])
    below = {file[len(top) + 1 :].split("/")[0] for file in images if file.count("/") > top.count("/") + 1}
    if not top or len(below) < 2:
        return ""
    accepted = f"accepted: {source}/{top}, classes:{source} (one class), images:{source} (no labels)"
    if all(is_split(name) for name in below):
        raise Refused(f"data: {top!r} of {source!r} holds splits ({', '.join(sorted(below)[:4])}), {accepted}")
    listed = ", ".join(sorted(below)[:4])
    return f"data: all images of {source!r} lie in {top!r}, of which the folders may be classes ({listed}), {accepted}"


def _check_splits_below(tops: dict[str, list[str]], source: str) -> None:
    """Refuse splits that lie one folder deeper than they are looked for."""
    deeper = [
        name
        for name, files in tops.items()
        if name and all(file.count("/") > 1 and is_split(file.split("/")[1]) for file in files)
    ]
    if deeper and len(deeper) == len(tops):
        if len(deeper) == 1:
            accepted = f"{source}/{deeper[0]}, classes:{source}"
        else:
            accepted = f"classes:{source} (all images, the outermost folder is the class), or one of them as data"
        raise Refused(f"data: the folders of {source!r} hold splits ({', '.join(deeper[:4])}), accepted: {accepted}")
