"""Files and folders as a data set: which files, of what kind, in which split."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Names of image members in WebDataset tars, which carry no declared types.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm")


def builder_of(files: list[str], source: str) -> str:
    """Return the `datasets` builder of files of one kind."""
    kinds = {".parquet": "parquet", ".tar": "webdataset"}
    suffixes = {Path(file.partition("?")[0]).suffix for file in files}
    if len(suffixes) != 1 or next(iter(suffixes)) not in kinds:
        raise Refused(f"data: {source!r} holds {', '.join(sorted(suffixes))} files, accepted: .parquet or .tar")
    return kinds[suffixes.pop()]


def count_up(pattern: str) -> list[str]:
    """Expand every `{000..031}` of a pattern to file names, because a file server cannot list its files."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not span:
        return [pattern]
    first, last = span.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [file for number in numbers for file in count_up(pattern.replace(span.group(), number, 1))]


def load_files(
    builder: str, files: list[str], source: str, split: str, streaming: bool, **options: Any
) -> "Dataset | IterableDataset":
    """Load files of one kind; files whose names start with a split's name belong to that split."""
    from datasets import load_dataset

    named: dict[str, list[str]] = {}
    for file in files:
        # "val" last: it begins "validation" too.
        for name in ("train", "validation", "test", "gallery", "query", "pairs", "val"):
            if Path(file).name.startswith(name):
                named.setdefault(name, []).append(file)
                break
    if len(files) == sum(map(len, named.values())) and (len(named) > 1 or split in named):
        if split not in named:
            raise Refused(f"split: got {split!r}, accepted: {', '.join(named)} (of {source})")
        files = named[split]
    return load_dataset(builder, data_files={"train": files}, split="train", streaming=streaming, **options)


def load_image_folder(path: Path, split: str) -> "Dataset":
    """Load a folder of images: sub-folders named like splits hold the splits, and sub-folders inside are classes.

    Never as a stream: folders are sorted by class, which shuffling block by block would not undo, and a folder is a
    single shard, of which each reader would have to read every file.
    """
    from datasets import load_dataset

    folders = {item.name for item in path.iterdir() if item.is_dir()}
    splits = folders & {"train", "validation", "val", "test"}
    if splits and split not in splits:
        raise Refused(f"split: got {split!r}, accepted: {', '.join(sorted(splits))} (folders of {path})")
    root = path / split if splits else path
    images = [file for file in root.rglob("*") if file.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS]
    if not images:
        raise Refused(f"data: no images under {root}, accepted: files named {', '.join(IMAGE_EXTENSIONS)}")
    labelled = all(len(file.relative_to(root).parts) > 1 for file in images)
    # All files by name: left to itself, `datasets` takes only those whose paths hold "train", if any do.
    files = {"train": ["**"]}
    return load_dataset("imagefolder", data_dir=str(root), data_files=files, split="train", drop_labels=not labelled)
