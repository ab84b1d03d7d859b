"""Images from anywhere: any `datasets` source, read undecoded, as an endless stream that resumes exactly."""

import glob
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np


# Names of image members in WebDataset tars, which carry no declared types.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm")


class StreamError(ValueError):
    """A stream that cannot go on, said in one line.

    A loader passes on its worker's whole traceback as the message; only the last line of it is meant for the reader.
    """

    def __init__(self, message: str):
        super().__init__(message.strip().splitlines()[-1].split(f"{type(self).__name__}: ")[-1])


def load_source(
    source: str,
    split: str = "train",
    *,
    streaming: bool = True,
    image_column: str | None = None,
    num_images: int = 50000,
    columns: list[str] | None = None,
):
    """Open a data set with its images undecoded.

    `source` is "scenes" or "scenes:SUBSET" (of `num_images` rendered images), a folder of images or Parquet files, a
    pattern of Parquet files or WebDataset tars, or a hub id `owner/name` or `owner/name:config`. Keeps the image
    column and `columns`; None keeps all. Returns a `datasets.IterableDataset`, or a `Dataset` without streaming.
    Raises FileNotFoundError or ValueError in one line that names the field.
    """
    from datasets import Image

    rows = _open(source, split, streaming, num_images)
    name = find_image_column(rows, image_column)
    if columns is not None:
        rows = rows.select_columns(list(dict.fromkeys([name, *columns])))
    features = rows.features or {}
    for column, feature in features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def _open(source: str, split: str, streaming: bool, num_images: int):
    from datasets import load_dataset

    if source.split(":")[0] == "scenes":
        from .scenes import load_scenes

        subset = source.partition(":")[2] or "single"
        return load_scenes(split, num_images, subset=subset, streaming=streaming)
    path = Path(source).expanduser()
    if path.is_dir():
        kinds = {"parquet": ["*.parquet"], "webdataset": ["*.tar"]}
        for builder, patterns in kinds.items():
            files = sorted(str(file) for pattern in patterns for file in path.rglob(pattern))
            if files:
                return _files(builder, files, source, split, streaming)
        return _image_folder(path, split, streaming)
    local = any(sign in source for sign in "*?[") or path.suffix or source.startswith((".", "/", "~"))
    if local:
        files = sorted(glob.glob(str(path), recursive=True))
        if not files:
            raise FileNotFoundError(
                f"data: nothing found at {source!r}, accepted: an existing file, folder or pattern"
            )
        kinds = {".parquet": "parquet", ".tar": "webdataset"}
        suffixes = {Path(file).suffix for file in files}
        if len(suffixes) != 1 or next(iter(suffixes)) not in kinds:
            raise ValueError(f"data: {source!r} holds {', '.join(sorted(suffixes))} files, accepted: .parquet or .tar")
        return _files(kinds[suffixes.pop()], files, source, split, streaming)
    repository, _, config = source.partition(":")
    try:
        return load_dataset(repository, config or None, split=split, streaming=streaming)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"data: {source!r} is no local path and the hub did not give it: {reason}") from error


def _files(builder: str, files: list[str], source: str, split: str, streaming: bool):
    """Load files of one kind; files whose names start with a split's name belong to that split."""
    from datasets import load_dataset

    named = {}
    for file in files:
        # "val" last: it begins "validation" too.
        for name in ("train", "validation", "test", "gallery", "query", "val"):
            if Path(file).name.startswith(name):
                named.setdefault(name, []).append(file)
                break
    if len(files) == sum(map(len, named.values())) and (len(named) > 1 or split in named):
        if split not in named:
            raise ValueError(f"split: got {split!r}, accepted: {', '.join(named)} (of {source})")
        files = named[split]
    return load_dataset(builder, data_files={"train": files}, split="train", streaming=streaming)


def _image_folder(path: Path, split: str, streaming: bool):
    """Load a folder of images; a sub-folder of the split's name is that split, sub-folders inside it are classes."""
    from datasets import load_dataset

    folders = {item.name for item in path.iterdir() if item.is_dir()}
    splits = folders & {"train", "validation", "val", "test"}
    if splits and split not in splits:
        raise ValueError(f"split: got {split!r}, accepted: {', '.join(sorted(splits))} (folders of {path})")
    root = path / split if splits else path
    found = [file for file in root.rglob("*") if file.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS]
    if not found:
        raise ValueError(f"data: no images under {root}, accepted: files named {', '.join(IMAGE_EXTENSIONS)}")
    labelled = all(len(file.relative_to(root).parts) > 1 for file in found)
    return load_dataset(
        "imagefolder", data_dir=str(root), split="train", streaming=streaming, drop_labels=not labelled
    )


def find_image_column(rows, image_column: str | None) -> str:
    """Return the column that holds the images; raises ValueError, listing the columns, if it is not plain which."""
    from datasets import Image

    names = list(rows.column_names or next(iter(rows)))
    listed = ", ".join(names)
    if image_column is not None:
        if image_column not in names:
            raise ValueError(f"image_column: got {image_column!r}, accepted: a column of the data set ({listed})")
        return image_column
    features = rows.features or {}
    found = [name for name in names if isinstance(features.get(name), Image)]
    found = found if len(found) == 1 else [name for name in found if name == "image"] or found
    found = found or [name for name in names if name.lower() in IMAGE_EXTENSIONS]
    if len(found) != 1:
        have = "no image column" if not found else f"several image columns ({', '.join(found)})"
        raise ValueError(f"image_column: the data set has {have}, accepted: one of its columns ({listed})")
    return found[0]


class RowStream:
    """Endless rows of a data set, epoch after epoch, for one of several readers that share it without overlap.

    Shards are read in an order drawn for each epoch, and each block of rows is permuted by (seed, epoch, reader,
    block); a `Dataset` that is not streamed gets a whole permutation instead. `state_dict` names a place in the stream
    exactly: resuming reads again at most one block.
    """

    def __init__(self, rows, block: int, seed: int, reader: int = 0, num_readers: int = 1):
        from datasets import IterableDataset

        self.rows, self.block, self.seed = rows, block, seed
        self.reader, self.num_readers = reader, num_readers
        self.streaming = isinstance(rows, IterableDataset)
        self.epoch, self.block_number, self.place, self.source = 0, 0, 0, None

    def state_dict(self) -> dict:
        """Return the place of the next row: epoch, block, place in the block, and the data set's state at its start."""
        names = ("epoch", "block_number", "place", "source")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def __iter__(self) -> Iterator[dict]:
        while True:
            first_of_epoch, count = self.block_number == 0, 0
            for block in self._blocks():
                order = np.random.default_rng([self.seed, self.epoch, self.reader, self.block_number])
                for index in order.permutation(len(block))[self.place :]:
                    self.place += 1
                    count += 1
                    yield block[int(index)]
                self.place, self.block_number = 0, self.block_number + 1
                self.source = None if not self.streaming else self._stream.state_dict()
            if first_of_epoch and not count:
                raise StreamError(
                    f"data: reader {self.reader} of {self.num_readers} gets no rows, accepted: a data set with at least "
                    "one row for each worker of each process (num_workers)"
                )
            self.epoch, self.block_number, self.place, self.source = self.epoch + 1, 0, 0, None

    def _blocks(self) -> Iterator:
        """Yield the blocks of this reader's share of an epoch, from the current one on."""
        if not self.streaming:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
            mine = order[self.reader :: self.num_readers]
            # One block: the epoch's order is already a permutation of the whole data set.
            if len(mine):
                yield _Selection(self.rows, mine)
            return
        from datasets.distributed import split_dataset_by_node

        # Shard order only: a buffer of its own would lose rows on resume. One input shard at a time, for the same reason.
        stream = self.rows.shuffle(seed=self.seed, buffer_size=1, max_buffer_input_shards=1)
        stream = split_dataset_by_node(stream, rank=self.reader, world_size=self.num_readers)
        stream.set_epoch(self.epoch)
        if self.source is not None:
            stream.load_state_dict(self.source)
        self._stream = stream
        self.source = stream.state_dict()
        # `iter` reads this reader's rows in a loader's worker too, where plain iteration would split them once more.
        rows = ({name: batch[name][0] for name in batch} for batch in stream.iter(1))
        while block := list(itertools.islice(rows, self.block)):
            yield block


class _Selection:
    """Rows of a map-style data set in a given order, read when asked for."""

    def __init__(self, rows, order: np.ndarray):
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        return self.rows[int(self.order[index])]
