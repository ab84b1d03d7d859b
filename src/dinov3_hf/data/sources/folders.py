"""Files as rows: images by their paths, and Parquet files and tars through their `datasets` builders."""

import contextlib
import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Refused
from .listing import IMAGE_EXTENSIONS, suffix_of
from .readings import say
from .split_names import ALL, matching, pick_split, split_of_file, split_of_folders
from .tars import load_mixed_tars


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


# Parquet files whose footers are read before any run.
FOOTERS = 512
BUILDERS = {"parquet": "parquet", "pq": "parquet", "tar": "webdataset"}


def builder_of(files: list[str], source: str) -> str:
    """Return the `datasets` builder of files of one kind."""
    suffixes = {suffix_of(file.partition("?")[0] if "://" in file else file) for file in files}
    builders = {BUILDERS.get(suffix) for suffix in suffixes}
    if len(builders) != 1 or None in builders:
        listed = ", ".join(sorted(f".{suffix}" if suffix else "unnamed" for suffix in suffixes))
        hint = "; images: the folder that holds them" if suffixes & set(IMAGE_EXTENSIONS) else ""
        raise Refused(f"data: {source!r} holds {listed} files, accepted: .parquet or .tar{hint}")
    return str(builders.pop())


def count_up(pattern: str) -> list[str]:
    """Expand every `{000..031}` of a pattern to file names, because a file server cannot list its files."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not span:
        return [pattern]
    first, last = span.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [file for number in numbers for file in count_up(pattern.replace(span.group(), number, 1))]


def local_files(source: str) -> list[str]:
    """Return the files of a local path or pattern; what exists under that very name is no pattern."""
    files: list[str] = []
    for pattern in [source] if os.path.exists(source) else count_up(source):
        if os.path.exists(pattern):
            files.append(pattern)
            continue
        escaped = ""
        for part in Path(pattern).parts:
            # Brackets in the names of existing folders are no pattern either.
            literal = os.path.join(escaped, glob.escape(part))
            escaped = literal if glob.glob(literal) else os.path.join(escaped, part)
        files += sorted(file for file in glob.glob(escaped, recursive=True) if os.path.isfile(file))
    return files


def files_of_splits(files: Sequence[str], source: str) -> dict[str | None, list[str]]:
    """Return the files of each split, told by folders (train/0000.parquet), else by names (train-0000.parquet).

    All files under None have no splits. `files` are relative paths. Raises `Refused` if only some files name a split,
    or if a name and its folder say different ones.
    """
    splits: dict[str | None, list[str]] = {}
    for file in files:
        folder, name = split_of_folders(file), split_of_file(file)
        if folder and name and folder.lower() != name and name in ("train", "test", "validation", "val"):
            raise Refused(
                f"data: {file!r} of {source!r} names two splits ({folder}, {name}), accepted: a pattern of the files "
                "of one split"
            )
        splits.setdefault(folder or name, []).append(file)
    if None in splits and len(splits) > 1:
        named = next(file for split, of_split in splits.items() if split for file in of_split)
        raise Refused(
            f"data: of the files of {source!r} some name a split ({named}) and some do not ({splits[None][0]}), "
            "accepted: a pattern of those to read, such as FOLDER/train-*.parquet"
        )
    return splits


def load_files(
    builder: str,
    files: Sequence[str],
    source: str,
    split: str,
    streaming: bool,
    root: str | None = None,
    is_pattern: bool = True,
    **options: Any,
) -> "Dataset | IterableDataset":
    """Load the files of a split, all of one kind. `root` is the folder below which folders are called like splits.

    A pattern of the files of one split is read whatever split is asked for, and that is said.
    """
    from datasets import load_dataset

    is_remote = any("://" in file for file in files)
    relative = {Path(file).name if root is None else os.path.relpath(file, root): file for file in files}
    if len(relative) < len(files):
        relative = {file: file for file in files}
    splits = files_of_splits(list(relative), source)
    if None not in splits and split != ALL:
        names = [name for name in splits if name is not None]
        if len(names) == 1 and is_pattern and not matching(names, split):
            say(source, [f"files named {names[0]} are read as split {split}, as they are all that is given"])
        else:
            files = [relative[file] for file in splits[pick_split(names, split, source)]]
    if not is_remote:
        if builder == "webdataset":
            mixed = load_mixed_tars(list(files), streaming)
            if mixed is not None:
                return mixed
        else:
            files = with_rows(files, source)
        # `datasets` reads a name as a pattern.
        files = [glob.escape(file) for file in files]
    try:
        return load_dataset(builder, data_files={"train": list(files)}, split="train", streaming=streaming, **options)
    except ValueError as error:
        # What `datasets` says of samples with different members; local tars are looked at before.
        mixed = None
        if is_remote and builder == "webdataset" and "same types" in str(error):
            mixed = load_mixed_tars(list(files), streaming, options.get("storage_options"))
        if mixed is None:
            raise
        return mixed


def with_rows(files: Sequence[str], source: str) -> list[str]:
    """Return the Parquet files that have rows, from their footers; of many files, only some are looked at.

    Raises `Refused` if none has rows, or if some have other columns than the first.
    """
    import pyarrow.parquet as pq

    step = max(1, len(files) // FOOTERS)
    footers = {file: pq.read_metadata(file) for file in dict.fromkeys((*files[::step], files[-1]))}
    empty = {file for file, footer in footers.items() if not footer.num_rows}
    kept = [file for file in files if file not in empty]
    if not kept:
        raise Refused(f"data: the Parquet files of {source!r} have no rows, accepted: at least one image")
    if empty:
        say(source, [f"{len(empty)} Parquet files without rows are skipped"])
    columns = {file: set(footer.schema.to_arrow_schema().names) for file, footer in footers.items()}
    first = kept[0]
    columns.setdefault(first, set(pq.read_schema(first).names))
    for file in footers:
        if file not in empty and columns[file] != columns[first]:
            differing = ", ".join(sorted(columns[file] ^ columns[first]))
            raise Refused(
                f"data: of the Parquet files of {source!r}, {os.path.basename(first)} and {os.path.basename(file)} "
                f"differ in columns ({differing}), accepted: a pattern of files with the same columns"
            )
    return kept


def image_rows(root: Path, files: Sequence[str], columns: dict[str, tuple[list, Any]]) -> "Dataset":
    """Return the images below `root` as rows that hold only paths, with further `columns` (values and feature).

    Never as a stream: folders are sorted by class, which shuffling block by block would not undo, and a folder is a
    single shard, of which each reader would have to read every file.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features, Image

    all_columns = {"image": ([f"{root}/{file}" for file in files], Image()), **columns}
    features = Features({name: feature for name, (_, feature) in all_columns.items()})
    arrays, digest = [], hashlib.sha256(repr(features).encode())
    for name, (values, feature) in all_columns.items():
        if isinstance(feature, Image):
            # Images that change under the same name are other rows.
            for value in values:
                with contextlib.suppress(OSError, TypeError):
                    state = os.stat(value)
                    digest.update(f"{value} {state.st_size} {state.st_mtime_ns} ".encode())
            fields = [pa.nulls(len(values), pa.binary()), pa.array(values, pa.string())]
            mask = pa.array([value is None for value in values], pa.bool_())
            arrays.append(pa.StructArray.from_arrays(fields, names=["bytes", "path"], mask=mask))
        else:
            digest.update(repr(values).encode())
            arrays.append(pa.array(values, features.arrow_schema.field(name).type))
    table = pa.table(arrays, names=list(all_columns))
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=digest.hexdigest()[:16])
