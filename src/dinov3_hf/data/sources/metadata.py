"""Tables next to images (metadata.csv, .jsonl, .parquet) that give each image further columns."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...errors import Refused


if TYPE_CHECKING:
    import pyarrow as pa


METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_metadata(path: Path) -> "pa.Table":
    """Return the table of a metadata file; raises `Refused` if it cannot be read."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_json(path, lines=True)
        return pa.Table.from_pandas(table, preserve_index=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"data: {str(path)!r} cannot be read: {reason}, accepted: a table with file_name") from error


def metadata_columns(
    root: Path, images: Sequence[str], tables: Sequence[str], source: str
) -> tuple[list[str], dict[str, tuple[list, Any]], list[str]]:
    """Return the images that the tables name, their further columns (values and feature), and what to say.

    A table without `file_name` is of something else. Raises `Refused` if the tables name only some of the images, or
    images that are not there.
    """
    from datasets import Features, Image

    notes: list[str] = []
    merged: dict[str, dict[str, Any]] = {}
    features: dict[str, Any] = {}
    for name in tables:
        table = read_metadata(root / name)
        if "file_name" not in table.column_names:
            notes.append(f"{name} is not read: it has no column file_name ({', '.join(table.column_names[:5])})")
            continue
        folder = PurePosixPath(name).parent
        schema = Features.from_arrow_schema(table.drop_columns(["file_name"]).schema)
        pictures = {column for column in schema if column.endswith("_file_name")}
        features |= {c.removesuffix("_file_name"): Image() if c in pictures else f for c, f in schema.items()}
        for row in table.to_pylist():
            file = os.path.normpath(folder / str(row.pop("file_name")))
            row = {c.removesuffix("_file_name") if c in pictures else c: v for c, v in row.items()}
            for column in (c.removesuffix("_file_name") for c in pictures):
                row[column] = None if row[column] is None else str(root / folder / row[column])
            merged[file] = row
    if not merged:
        return list(images), {}, notes
    missing = [file for file in merged if file not in set(images)]
    if missing:
        raise Refused(f"data: {tables[0]} of {source!r} names {missing[0]!r}, which is no image there")
    pictures = {column for column, feature in features.items() if isinstance(feature, Image)}
    aside = {row[column] for row in merged.values() for column in pictures if row.get(column)}
    unnamed = [file for file in images if file not in merged and str(root / file) not in aside]
    if unnamed:
        raise Refused(
            f"data: {tables[0]} of {source!r} names {len(merged)} of {len(merged) + len(unnamed)} images (not "
            f"{unnamed[0]!r}), accepted: a row for each, or images:FOLDER to read the images alone"
        )
    files = [file for file in images if file in merged]
    columns = {name: ([merged[file].get(name) for file in files], feature) for name, feature in features.items()}
    columns.pop("image", None)
    return files, columns, notes
