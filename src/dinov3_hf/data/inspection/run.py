"""A pass over every image of a source, which a killed run continues, and which ends with the same account."""

import io
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import Failed, Refused
from ...terminal import progress_bar
from ..pixels import BadImage
from .duplicates import find_duplicates
from .facts import MAX_CLASSES, ImageSummary, add_bounded, encoded_bytes, image_hash, look_at, plain, unclear_values
from .rows import Place, Split, read_rows


# Images among which byte-identical ones are looked for: 32 MB of digests.
MAX_HASHES = 4_000_000
# What was counted is written this often, so that a killed run loses no more.
SAVE_SECONDS = 10.0
# Pictures kept for the contact sheet, between this many and twice as many, and their largest side.
NUM_TILES, TILE_SIZE = 48, 112
STATE_FILE, HASH_FILE, NAME_FILE = "inspect_state.npz", "inspect_hashes.partial", "inspect_names.partial"
SKIPPED_FILE, DUPLICATES_FILE = "skipped.txt", "duplicates.txt"


class Tiles:
    """Pictures spread evenly over images whose number is not known: every n-th, with n doubled when there are many."""

    def __init__(self) -> None:
        self.stride, self.position = 1, 0
        self.pixels: list[np.ndarray] = []
        self.captions: list[str] = []

    @property
    def wants_next(self) -> bool:
        return self.position % self.stride == 0

    def add(self, pixels: np.ndarray, caption: str) -> None:
        """Keep the picture of the next image, which was wanted."""
        self.pixels.append(pixels)
        self.captions.append(caption)
        if len(self.pixels) == 2 * NUM_TILES:
            self.stride, self.pixels, self.captions = 2 * self.stride, self.pixels[::2], self.captions[::2]

    def chosen(self) -> list[tuple[np.ndarray, str]]:
        """Return at most `NUM_TILES` pictures, from first to last, with their captions."""
        count = len(self.pixels)
        picks = np.linspace(0, count - 1, min(count, NUM_TILES)).round().astype(int)
        return [(self.pixels[pick], self.captions[pick]) for pick in picks]


@dataclass
class Pass:
    """A pass over splits, with everything a killed run needs to go on in its folder."""

    splits: list[Split]
    folder: Path
    max_images: int | None = None
    place: Place = field(default_factory=Place)
    accounts: list[ImageSummary] = field(default_factory=list)
    hashed: list[int] = field(default_factory=list)
    tiles: Tiles = field(default_factory=Tiles)
    seconds: float = 0.0

    def run(self) -> None:
        """Read every row that was not read yet."""
        if not self.accounts:
            self.accounts, self.hashed = [ImageSummary() for _ in self.splits], [0] * len(self.splits)
            self.clear()
        with (
            open(self.folder / SKIPPED_FILE, "ab") as skipped,
            open(self.folder / HASH_FILE, "ab") as hashes,
            open(self.folder / NAME_FILE, "ab") as names,
        ):
            files = (skipped, hashes, names)
            while self.place.split < len(self.splits):
                self._read_split(files)
                self.place = Place(self.place.split + 1)
            self.save(files)

    def _read_split(self, files: tuple[BinaryIO, ...]) -> None:
        split, account = self.splits[self.place.split], self.accounts[self.place.split]
        total = self.max_images if split.total is None else min(split.total, self.max_images or split.total)
        started = saved = time.monotonic()
        before, rows = self.seconds, read_rows(split, self.place)
        with progress_bar(total=total, initial=self.place.in_split, unit=" images", desc=split.name) as bar:
            while self.max_images is None or self.place.in_split < self.max_images:
                try:
                    item = next(rows, None)
                except Failed:
                    self.save(files)
                    raise
                if item is None:
                    break
                self.take(split, account, *item, files)
                bar.update()
                self.seconds = before + time.monotonic() - started
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self.save(files)
                    saved = time.monotonic()

    def take(self, split: Split, account: ImageSummary, name: str, row: dict, files: tuple[BinaryIO, ...]) -> None:
        """Count one row."""
        skipped, hashes, names = files
        data = b""
        try:
            data = encoded_bytes(row[split.image_column])
            facts = look_at(data, TILE_SIZE if self.tiles.wants_next else None)
        except BadImage as error:
            reason = plain(str(error))
            account.skip(reason, unclear_values(data, reason))
            skipped.write(f"{name}\t{reason}\n".encode())
            return
        account.add(facts, len(data))
        label = split.label_of(row) if split.label_column is not None else None
        if split.label_column is not None:
            add_bounded(account.labels, label, MAX_CLASSES)
        if facts.tile is not None:
            self.tiles.add(np.asarray(facts.tile), plain(str(split.name if label is None else label)))
        self.tiles.position += 1
        if sum(self.hashed) < MAX_HASHES:
            self.hashed[self.place.split] += 1
            hashes.write(image_hash(data))
            names.write(name.encode() + b"\n")

    def clear(self) -> None:
        """Remove what an earlier run wrote to the folder."""
        for name in (STATE_FILE, HASH_FILE, NAME_FILE, SKIPPED_FILE, DUPLICATES_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def save(self, files: tuple[BinaryIO, ...]) -> None:
        """Write where the pass stands, all at once or not at all."""
        for file in files:
            file.flush()
        state = {
            "place": vars(self.place),
            "accounts": [account.state_dict() for account in self.accounts],
            "hashed": self.hashed,
            "seconds": self.seconds,
            "captions": self.tiles.captions,
            "stride": self.tiles.stride,
            "position": self.tiles.position,
            "lengths": [file.tell() for file in files],
            "rows": _lengths(self.splits),
        }
        buffer = io.BytesIO()
        tiles: dict[str, Any] = {f"tile{index}": pixels for index, pixels in enumerate(self.tiles.pixels)}
        np.savez(buffer, state=np.array(json.dumps(state)), **tiles)
        temporary = self.folder / f"{STATE_FILE}.new"
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, self.folder / STATE_FILE)

    def load(self) -> bool:
        """Continue from the state in the folder, if it holds one; raises `Refused` if the source changed since."""
        if not (self.folder / STATE_FILE).is_file():
            return False
        with np.load(self.folder / STATE_FILE, allow_pickle=False) as stored:
            state = json.loads(str(stored["state"]))
            self.tiles.captions = state["captions"]
            self.tiles.pixels = [stored[f"tile{index}"] for index in range(len(self.tiles.captions))]
        if state["rows"] != _lengths(self.splits):
            raise Refused(
                f"data: the source has changed since the inspection in {self.folder} began: its splits had "
                f"{state['rows']} rows or shards, now {_lengths(self.splits)}; accepted: --overwrite"
            )
        self.tiles.stride, self.tiles.position = state["stride"], state["position"]
        self.place, self.hashed, self.seconds = Place(**state["place"]), state["hashed"], state["seconds"]
        self.accounts = [ImageSummary.from_state(account) for account in state["accounts"]]
        for name, length in zip((SKIPPED_FILE, HASH_FILE, NAME_FILE), state["lengths"], strict=True):
            # Rows after the last state are read again.
            os.truncate(self.folder / name, length)
        return True

    def find_duplicates(self) -> dict[str, Any]:
        """Look for byte-identical images, write them to `DUPLICATES_FILE`, and return them as `inspect.json` does."""
        hashes, names, file = (self.folder / name for name in (HASH_FILE, NAME_FILE, DUPLICATES_FILE))
        answer = find_duplicates(hashes, names, file, [split.name for split in self.splits], self.hashed)
        if sum(self.hashed) < sum(account.readable for account in self.accounts):
            answer["only_among_the_first"] = sum(self.hashed)
        return answer

    def remove_state(self) -> None:
        """Remove the files that only a killed run needs."""
        for name in (STATE_FILE, HASH_FILE, NAME_FILE):
            (self.folder / name).unlink(missing_ok=True)


def _lengths(splits: list[Split]) -> dict[str, int]:
    """Return the rows of each split, or the shards of a stream of which they are not known."""
    return {split.name: split.rows.num_shards if split.total is None else split.total for split in splits}
