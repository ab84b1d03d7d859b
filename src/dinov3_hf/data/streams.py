"""Images from anywhere: any `datasets` source, read undecoded, as an endless stream that resumes exactly."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Refused
from .columns import find_image_column
from .retries import StreamError, with_retries
from .sources.folders import BUILDERS, builder_of, count_up, load_files, local_files
from .sources.listing import IMAGE_EXTENSIONS, suffix_of
from .sources.opening import open_folder
from .sources.readings import split_reading
from .sources.tars import with_json_columns


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# A connection that gives no data for this many seconds is closed.
SILENT_SECONDS = 60
# Images fetched at the same time if each is a remote file of its own.
FETCH_THREADS = 16
# Epochs in a row without a row for a reader, after which the data set counts as too small.
EMPTY_EPOCHS = 16


def load_source(
    source: str,
    split: str = "train",
    *,
    streaming: bool = True,
    image_column: str | None = None,
    num_images: int = 50000,
    columns: list[str] | None = None,
) -> "Dataset | IterableDataset":
    """Open a data set, without decoding its images.

    `source` is "scenes" or "scenes:SUBSET" (of `num_images` rendered images), a folder of images (with masks or boxes
    too), of Parquet files, of tars, or saved by `datasets`, a pattern of Parquet files or WebDataset tars, such files
    at a URL (`{000..031}` stands for 32 of them), or a hub id `owner/name` or `owner/name:config`. Where a folder can
    be read in two ways, `classes:FOLDER`, `splits:`, `images:`, `masks:` or `boxes:` says which. The split "all" is
    all splits together. Keeps the image column and `columns`; None keeps all. Returns a `datasets.IterableDataset`;
    without streaming, and for local folders of images and saved data sets, a `Dataset`. Raises `Refused`, naming the
    field.
    """
    from datasets import Image, IterableDataset

    rows = _open(source, split, streaming, num_images, wanted=columns)
    name = find_image_column(rows, image_column)
    columns = None if columns is None else list(dict.fromkeys([name, *columns]))
    if not isinstance(rows, IterableDataset):
        rows = with_json_columns(rows)
    builder = rows.info.builder_name if isinstance(rows, IterableDataset) else None
    if builder == "parquet" and columns is not None:
        # Only these columns are read; `select_columns` below would read all and drop the others.
        rows = _open(source, split, streaming, num_images, columns=columns)
    elif builder == "imagefolder":
        # `datasets` decodes folders on the hub in threads, which cannot be turned off once the data set is open.
        rows = _open(source, split, streaming, num_images, decode_num_threads=0)
    if columns is not None:
        rows = rows.select_columns(columns)
    features = rows.features or {}
    for column, feature in features.items():
        if isinstance(feature, Image) or (image_column is None and column == name):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def load_table(source: str, split: str) -> "Dataset":
    """Open a split without images, such as pairs of row numbers of another split; raises what `load_source` raises."""
    return _open(source, split, False, 0)


def is_hub_id(source: str) -> bool:
    """Say whether a source that is no URL and no existing path is an id on the hub (`owner/name.v2:config`)."""
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[^/]+)?", source) is not None
    return is_id and suffix_of(source) not in (*BUILDERS, *IMAGE_EXTENSIONS)


def _open(
    source: str, split: str, streaming: bool, num_images: int, wanted: Sequence[str] | None = None, **options: Any
) -> "Dataset | IterableDataset":
    """Open any source; `options` are those of its `datasets` builder, and only `wanted` columns need be read."""
    from datasets import load_dataset

    if source.split(":")[0] == "scenes":
        from .scenes import load_scenes

        subset = source.partition(":")[2] if ":" in source else "single"
        return load_scenes(split, num_images, subset=subset, streaming=streaming)
    if "://" in source:
        return _open_urls(source, split, streaming, **options)
    reading, name = (None, source) if os.path.exists(source) else split_reading(source)
    path = Path(name).expanduser()
    if os.path.isdir(path):
        with _openable(source):
            return open_folder(path, name, reading, split, streaming, wanted, **options)
    files = local_files(str(path))
    if files and reading is None:
        with _openable(source):
            root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
            return load_files(builder_of(files, source), files, source, split, streaming, root, **options)
    if reading is not None or not is_hub_id(source):
        what = "an existing folder" if reading else "an existing file, folder or pattern"
        raise Refused(f"data: nothing found at {source!r}, accepted: {what}")
    repository, _, config = source.partition(":")
    with _openable(source, "is no local path and the hub did not give it"):
        return load_dataset(repository, config or None, split=split, streaming=streaming, **options)


@contextlib.contextmanager
def _openable(source: str, what: str = "cannot be read") -> Iterator[None]:
    """Turn any error of `datasets` about a wrong or broken source into a one-line `Refused` that names the source."""
    from datasets.utils import logging

    # It would log the same error with its traceback.
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (Refused, MemoryError):
        raise
    except Exception as error:
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise Refused(
            f"data: {source!r} {what}: {reason}, accepted: scenes, images, Parquet files, WebDataset tars, a hub "
            "data set"
        ) from error
    finally:
        logging.set_verbosity(before)


def _open_urls(source: str, split: str, streaming: bool, **options: Any) -> "Dataset | IterableDataset":
    """Open files at a URL of any kind that fsspec supports."""
    urls = count_up(source)
    builder = builder_of(urls, source)
    if source.startswith(("http://", "https://")):
        try:
            from aiohttp import ClientTimeout
        except ImportError as error:
            raise Refused(f"data: got {source!r}, accepted: after pip install aiohttp, or a hub id") from error
        # By default a response has five minutes in all, and a tar is read for as long as training on it takes.
        timeout = ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
        options = {"storage_options": {"client_kwargs": {"timeout": timeout}}, **options}
    try:
        return with_retries(lambda: load_files(builder, urls, source, split, streaming, **options), f"data: {source}")
    except (OSError, ImportError, StreamError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refused(f"data: {source!r} could not be opened: {reason}") from error


class RowStream:
    """Endless rows of a data set, epoch after epoch, for one of several readers that share it without overlap.

    Shards are read in an order drawn for each epoch, and each block of rows is permuted by (seed, epoch, reader,
    block); a `Dataset` that is not streamed gets a whole permutation instead. With at least as many shards as readers,
    each opens its own and goes through its epochs at its own pace; with fewer, all read everything and keep every n-th
    row. After a network error a reader goes back to the start of its block: nothing is lost and nothing comes twice.
    `state_dict` holds the exact place in the stream: resuming reads at most one block again. Raises `StreamError` if
    there is nothing to read.
    """

    def __init__(
        self, rows: "Dataset | IterableDataset", block: int, seed: int, reader: int = 0, num_readers: int = 1
    ):
        from datasets import IterableDataset

        self.rows, self.block, self.seed = rows, block, seed
        self.reader, self.num_readers = reader, num_readers
        self.streaming = isinstance(rows, IterableDataset)
        # `source` is the data set's own state at the start of the block; None is the start of the epoch.
        self.epoch, self.block_number, self.place, self.source = 0, 0, 0, None

    def state_dict(self) -> dict:
        """Return the next row's place: epoch, block, place in it, and the data set's state at the block's start."""
        names = ("epoch", "block_number", "place", "source", "num_readers")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`, before iteration; raises ValueError if it was saved with another `num_readers`."""
        if state["num_readers"] != self.num_readers:
            raise ValueError(f"num_readers: got {self.num_readers}, accepted: {state['num_readers']}, as when saved")
        for name, value in state.items():
            setattr(self, name, value)

    @staticmethod
    def restart_state(states: list[dict], num_readers: int) -> dict:
        """Return the state from which each of `num_readers` readers continues a run whose readers had `states`.

        Another number of readers divides an epoch differently, so that an epoch in progress cannot be finished
        exactly. All start at the epoch after the last one that any reader had begun: some rows are skipped, none is
        read twice.
        """
        epoch = max(state["epoch"] for state in states) + 1
        return {"epoch": epoch, "block_number": 0, "place": 0, "source": None, "num_readers": num_readers}

    def __iter__(self) -> Iterator[dict]:
        empty_epochs = 0
        while True:
            for block in self._blocks():
                order = np.random.default_rng([self.seed, self.epoch, self.reader, self.block_number])
                for index in order.permutation(len(block))[self.place :]:
                    self.place += 1
                    yield block[int(index)]
                self.place, self.block_number = 0, self.block_number + 1
                self.source = self._stream.state_dict() if self.streaming else None
            # A reader may get only empty shards; the next epoch distributes them anew.
            empty_epochs = 0 if self.block_number else empty_epochs + 1
            if empty_epochs == EMPTY_EPOCHS:
                raise StreamError(
                    f"data: reader {self.reader} of {self.num_readers} gets no rows, accepted: a data set with at "
                    "least one row for each worker of each process (num_workers)"
                )
            self.epoch, self.block_number, self.place, self.source = self.epoch + 1, 0, 0, None

    def _blocks(self) -> Iterator:
        """Yield the blocks of this reader's share of the epoch, from the current block on."""
        if not self.streaming:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
            mine = order[self.reader :: self.num_readers]
            # One block: the epoch's order is already a permutation of the whole data set.
            if len(mine):
                yield _Selection(self.rows, mine)
            return
        rows = None

        def read_block() -> list[dict]:
            nonlocal rows
            try:
                rows = rows or self._open()
                return _fetch_images(list(itertools.islice(rows, self.block)))
            except Exception:
                # A generator that raised is finished: the next try opens the data set again, at the start of the
                # block.
                rows = None
                raise

        while block := with_retries(read_block, "data"):
            yield block

    def _open(self) -> Iterator[dict]:
        """Open the data set at the start of the current block and return its rows."""
        from datasets.distributed import split_dataset_by_node

        strategy = "shards" if self.rows.num_shards >= self.num_readers else "examples"
        stream = split_dataset_by_node(self.rows, self.reader, self.num_readers, strategy)
        # An epoch above 0 is a seed for the order of the shards. `shuffle` would add a buffer, which cannot be
        # resumed.
        stream.set_epoch(int(np.random.default_rng([self.seed, self.epoch]).integers(1, 2**31)))
        if self.source is not None:
            stream.load_state_dict(self.source)
        self._stream = stream
        # `iter` reads this reader's rows in a loader's worker too, where plain iteration would split them once more.
        return ({name: batch[name][0] for name in batch} for batch in stream.iter(1))


def _fetch_images(rows: list[dict]) -> list[dict]:
    """Fetch images of which the rows hold only a URL; fetched later, a network error would count as a bad image."""
    remote = [
        image
        for row in rows
        for image in row.values()
        if isinstance(image, dict) and image.get("bytes", b"") is None and "://" in (image.get("path") or "")
    ]
    if remote:
        from datasets.utils.file_utils import xopen

        def fetch(image: dict) -> None:
            with xopen(image["path"], "rb") as file:
                image["bytes"] = file.read()

        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            list(pool.map(fetch, remote))
    return rows


class _Selection:
    """Rows of a map-style data set in a given order, read on access."""

    def __init__(self, rows: "Dataset", order: np.ndarray):
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        return self.rows[int(self.order[index])]
