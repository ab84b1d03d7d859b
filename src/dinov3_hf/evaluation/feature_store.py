"""Frozen features of a data set: computed once, kept in memory-mapped files, resumable, and shared by processes."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.ahead import read_ahead
from ..data.columns import undecoded
from ..data.pixels import decode_image
from ..data.views import Preprocessing, WholeImage
from ..errors import Refused
from ..terminal import progress_bar


if TYPE_CHECKING:
    from datasets import Dataset

# State of a row: not computed yet, features stored, or image that cannot be decoded.
MISSING, DONE, BAD = 0, 1, 2
# Number of batches that are decoded ahead of the one in the network.
AHEAD = 2


@dataclass(frozen=True)
class Extractor:
    """A function from normalised images [B,3,H,W] to tokens [B,N,width] (fp32), or [B,width] for one token an image.

    `key` identifies the weights and the kind of features: extractors of equal keys give equal features.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    width: int
    key: str
    patch_size: int | None = None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Number of tokens along the height and width of an image: its patches, or one token for the whole image."""
        return (height // self.patch_size, width // self.patch_size) if self.patch_size else (1, 1)


class Features:
    """Features of the rows that could be decoded: `features[i]` holds the tokens [N,D] of row number `kept[i]`.

    Tokens are read from disk on access.
    """

    def __init__(self, tokens: torch.Tensor, offsets: list[int], grids: list[tuple[int, int]], kept: list[int]):
        self.tokens, self.offsets, self.kept = tokens, offsets, kept
        self.grids = [grids[row] for row in kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self.kept[index]
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def stack(self) -> torch.Tensor:
        """Return [N,D] if every row has one token, else [N,P,D]; raises `Refused` if rows have different grids."""
        if len(set(self.grids)) != 1:
            raise Refused(f"features: got grids {sorted(set(self.grids))}, accepted: one grid for all rows")
        stacked = torch.stack([self[index] for index in range(len(self))])
        return stacked[:, 0] if self.grids[0] == (1, 1) else stacked


class FeatureStore:
    """A folder of features. Processes with the same folder share the work; `wait` is a barrier of all processes.

    Without `folder`, a temporary one is used and deleted with the object. Batches depend on the data alone, so that
    interrupted runs, runs of several processes and plain runs compute the same numbers.
    """

    def __init__(
        self,
        folder: Path | None = None,
        rank: int = 0,
        num_processes: int = 1,
        wait: Callable[[], None] = lambda: None,
    ):
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="dinov3-features-")
            folder = Path(self._temporary.name)
        self.folder, self.rank, self.num_processes, self.wait = Path(folder), rank, num_processes, wait

    def extract(
        self,
        rows: "Dataset",
        image_column: str,
        view: Preprocessing | WholeImage,
        extractors: dict[str, Extractor],
        batch_size: int,
        device: torch.device | str = "cpu",
        description: str = "images",
        progress: bool = True,
    ) -> dict[str, Features]:
        """Return each extractor's features of the images in `rows`, preprocessed by `view`.

        Features stored by an earlier run are not computed again. Raises `Refused` if there are no rows, if no image
        can be decoded, if features are not finite, or if the disk has too little space.
        """
        if not len(rows):
            raise Refused("data: got a split without rows, accepted: at least one image")
        rows = undecoded(rows.select_columns([image_column]))
        sizes: Sequence[tuple[int, int] | None] = view.sizes(rows, image_column)
        about = [rows._fingerprint, image_column, repr(view), batch_size]
        shelves = {name: _Shelf(self, extractor, about, sizes) for name, extractor in extractors.items()}
        self._check_disk(shelves.values())
        if self.rank == 0:
            for shelf in shelves.values():
                shelf.create()
        self.wait()
        for shelf in shelves.values():
            shelf.open()
        batches = list(enumerate(_batches(sizes, batch_size)))[self.rank :: self.num_processes]
        open_batches = [part for _, part in batches if any(shelf.lacks(part) for shelf in shelves.values())]
        num_done = sum(len(part) for _, part in batches) - sum(map(len, open_batches))

        def read(value: dict | None, size: tuple[int, int] | None) -> torch.Tensor | None:
            try:
                image = view.image(decode_image(value))
            except (OSError, ValueError):
                return None
            # The header of a broken file may state another size, which would not fit the space reserved for it.
            return image if image.shape[-2:] == size else None

        def calls_of(part: range) -> list[tuple[dict | None, tuple[int, int] | None]]:
            values = rows[part.start : part.stop][image_column]
            return list(zip(values, sizes[part.start : part.stop], strict=True))

        with progress_bar(
            total=sum(len(part) for _, part in batches),
            initial=num_done,
            desc=description,
            unit="image",
            disable=not progress or not open_batches,
        ) as bar:
            read_batches = read_ahead(read, map(calls_of, open_batches), AHEAD)
            for part, images in zip(open_batches, read_batches, strict=True):
                good = [index for index, image in enumerate(images) if image is not None]
                pixels = None
                if good:
                    pixels = view.normalize(torch.stack([images[index] for index in good]).to(device))
                for name, shelf in shelves.items():
                    if shelf.lacks(part):
                        shelf.put(part, good, pixels, name)
                bar.update(len(part))
        self.wait()
        features = {name: shelf.features() for name, shelf in shelves.items()}
        if not all(map(len, features.values())):
            raise Refused(f"image_column: none of the {len(rows)} images in {image_column!r} could be decoded")
        return features

    def _check_disk(self, shelves: Iterable["_Shelf"]) -> None:
        missing = sum(shelf.num_bytes for shelf in shelves if not shelf.exists())
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if self.rank == 0 and missing > free:
            raise Refused(
                f"cache_dir: {self.folder} has {free / 1e9:.1f} GB free, accepted: at least {missing / 1e9:.1f} GB "
                "for the features (fewer images, a smaller image_size, or another folder)"
            )


def _batches(sizes: Sequence[tuple[int, int] | None], batch_size: int) -> Iterator[range]:
    """Yield ranges of at most `batch_size` neighbouring rows of one size."""
    start = 0
    for stop in range(1, len(sizes) + 1):
        if stop == len(sizes) or sizes[stop] != sizes[start] or stop - start == batch_size:
            yield range(start, stop)
            start = stop


class _Shelf:
    """The files of one extractor's features of a data set: the tokens of all rows, and a state byte per row."""

    def __init__(
        self, store: FeatureStore, extractor: Extractor, about: list, sizes: Sequence[tuple[int, int] | None]
    ):
        self.extractor, self.num_rows = extractor, len(sizes)
        self.about = [extractor.key, *about]
        self.folder = store.folder / hashlib.sha256(json.dumps(self.about).encode()).hexdigest()[:20]
        self.grids = [extractor.grid(*size) if size else (0, 0) for size in sizes]
        self.offsets = [0]
        for height, width in self.grids:
            self.offsets.append(self.offsets[-1] + height * width)
        self.num_bytes = 4 * self.offsets[-1] * extractor.width

    def exists(self) -> bool:
        return (self.folder / "about.json").is_file()

    def create(self) -> None:
        """Create the empty files; `about.json`, written last, marks them as complete."""
        if self.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, size in (("tokens.f32", self.num_bytes), ("state.u8", self.num_rows)):
            with open(self.folder / name, "wb") as file:
                # Empty files cannot be mapped.
                file.truncate(max(size, 1))
        (self.folder / "about.json").write_text(json.dumps(self.about))

    def open(self) -> None:
        shape = (self.offsets[-1], self.extractor.width)
        self.tokens = np.memmap(self.folder / "tokens.f32", np.float32, "r+", shape=shape) if self.num_bytes else None
        self.state = np.memmap(self.folder / "state.u8", np.uint8, "r+", shape=(self.num_rows,))

    def lacks(self, part: range) -> bool:
        return bool((self.state[part.start : part.stop] == MISSING).any())

    def put(self, part: range, good: list[int], pixels: torch.Tensor | None, name: str) -> None:
        """Compute and write the features of a batch; `good` are the indices in `part` of decoded images."""
        if good:
            tokens = self.extractor.function(pixels).reshape(len(good), -1, self.extractor.width)
            finite = tokens.isfinite().flatten(1).all(1)
            if not finite.all():
                raise Refused(
                    f"features: {name} gives values that are not finite for {int((~finite).sum())} of {len(good)} "
                    f"images, the first in row {part[good[int((~finite).nonzero()[0])]]}, accepted: a "
                    "network of finite outputs"
                )
            assert self.tokens is not None, "images of a known size have tokens"
            for index, values in zip(good, tokens.cpu().numpy(), strict=True):
                row = part[index]
                self.tokens[self.offsets[row] : self.offsets[row + 1]] = values
            # A row is marked as done only after its tokens are on disk.
            self.tokens.flush()
        state = np.full(len(part), BAD, np.uint8)
        state[good] = DONE
        self.state[part.start : part.stop] = state
        self.state.flush()

    def features(self) -> Features:
        kept = np.flatnonzero(self.state == DONE).tolist()
        tokens = torch.from_numpy(self.tokens) if self.tokens is not None else torch.zeros(0, self.extractor.width)
        return Features(tokens, self.offsets, self.grids, kept)
