"""What images are, from all their pixels: the facts of one, and the account of many, in memory that does not grow."""

import hashlib
import io
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..pixels import BadImage, StoredImage, decode_image, stored_value
from ..retries import with_retries


# Bytes of the digest by which images are the same; among four million the chance of an error is one in a million.
HASH_BYTES = 8
# More different sizes, labels or reasons than these are counted together: an account stays small.
MAX_SIZES, MAX_CLASSES, MAX_REASONS = 20_000, 10_000, 50
OTHER = "other"
# Modes in which the stored values are those of the decoded image.
PLAIN_MODES = ("L", "RGB")
# Bits a channel by Pillow's mode, where the file's header does not tell; 8 for all other modes.
BITS = {"1": 1, "I": 32, "F": 32}
# Pixels of a channel that are counted at once.
CHUNK = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What one image is: `histogram` [3,256] counts the values of its decoded pixels, upright and in RGB."""

    format: str
    mode: str
    bits: int
    height: int
    width: int
    is_rotated: bool
    is_grey: bool
    has_frames: bool
    stored_range: tuple[float, float]
    histogram: np.ndarray
    tile: Image.Image | None


def encoded_bytes(value: StoredImage) -> bytes:
    """Return the encoded bytes of an image as a row holds it; raises `BadImage` if there are none."""
    value = stored_value(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise BadImage("the row holds no image" if value is None else f"the row holds a {type(value).__name__}")
    if "://" in value:
        return with_retries(lambda: _fetch(value), f"data: {value}")
    try:
        return Path(value).read_bytes()
    except OSError as error:
        raise BadImage(f"{type(error).__name__}: {error.strerror}") from error


def _fetch(url: str) -> bytes:
    from datasets.utils.file_utils import xopen

    with xopen(url, "rb") as file:
        return file.read()


def image_hash(data: bytes) -> bytes:
    """Return a digest of encoded bytes: images with equal ones are the same file."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES, key=b"dinov3").digest()


def look_at(data: bytes, tile_size: int | None = None) -> Facts:
    """Return the facts of an encoded image, with a picture of at most `tile_size` pixels a side; raises `BadImage`."""
    pixels = decode_image(data)
    planes = pixels.numpy().reshape(3, -1)
    histogram = np.stack([_count(plane) for plane in planes])
    tile = None
    if tile_size is not None:
        tile = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        tile.thumbnail((tile_size, tile_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        return Facts(
            format=image.format or "unknown",
            mode=image.mode,
            bits=_bits(image, data),
            height=pixels.shape[1],
            width=pixels.shape[2],
            is_rotated=_is_rotated(image),
            is_grey=bool(np.array_equal(planes[0], planes[1]) and np.array_equal(planes[1], planes[2])),
            has_frames=bool(getattr(image, "is_animated", False)),
            stored_range=_stored_range(image, histogram),
            histogram=histogram,
            tile=tile,
        )


def _count(plane: np.ndarray) -> np.ndarray:
    """Count the 256 values of a channel [N]; piece by piece, as numpy copies what it counts to 64 bits."""
    pieces = (plane[start : start + CHUNK] for start in range(0, plane.size, CHUNK))
    return sum((np.bincount(piece, minlength=256) for piece in pieces), np.zeros(256, np.int64))


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits a channel of the file: Pillow's mode does not tell of colour images in 16 bits."""
    if image.format == "PNG":
        return data[24]
    tags: Any = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags and tags.get(258):
        return max(np.atleast_1d(tags[258]).tolist())
    return 16 if image.mode.startswith("I;16") else BITS.get(image.mode, 8)


def _is_rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:
        # Pillow's readers raise almost anything on broken tags, with which the image stays as it is.
        return False


def _stored_range(image: Image.Image, histogram: np.ndarray) -> tuple[float, float]:
    """Return the smallest and largest stored value of an image of which the decoded values are counted."""
    if image.mode in PLAIN_MODES:
        used = np.flatnonzero(histogram.sum(axis=0))
        return float(used[0]), float(used[-1])
    return _extremes(image)


def _extremes(image: Image.Image) -> tuple[float, float]:
    """Return the smallest and largest finite value; of palettes, those of the indices; (0, 0) without any."""
    values = np.asarray(image)
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def unclear_values(data: bytes, reason: str) -> tuple[str, tuple[float, float]] | None:
    """Return mode and range of an image that was refused only because its range of values is not known, or None."""
    if not reason.startswith("value_range"):
        return None
    image = Image.open(io.BytesIO(data))
    return image.mode, _extremes(image)


def plain(text: str) -> str:
    """Return a text as one line without memory addresses, tabs and other characters that do not print."""
    text = re.sub(r"(image file )?<[\w.]+ object at 0x[0-9a-f]+>", "it", text)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def reason_group(reason: str) -> str:
    """Return what reasons have in common: the text without its numbers, names of files, and what is accepted."""
    return re.sub(r"'[^']*'", "...", re.sub(r"(?<![A-Za-z\d])\d+", "N", reason.partition(", accepted: ")[0]))


def add_bounded(counts: Counter, key: Any, limit: int) -> None:
    """Count a key; a new one beyond so many counts as `OTHER`."""
    counts[key if key in counts or len(counts) < limit else OTHER] += 1


@dataclass
class ImageSummary:
    """What the images of a split are; every number is a count or a sum of whole numbers, exact in any order."""

    rows: int = 0
    encoded: int = 0
    rotated: int = 0
    grey: int = 0
    one_colour: int = 0
    several_frames: int = 0
    skipped: Counter = field(default_factory=Counter)
    formats: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    bits: Counter = field(default_factory=Counter)
    heights: Counter = field(default_factory=Counter)
    widths: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    ranges: dict[str, list[float]] = field(default_factory=dict)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))

    @property
    def readable(self) -> int:
        return self.rows - sum(self.skipped.values())

    def skip(self, reason: str, stored: tuple[str, tuple[float, float]] | None = None) -> None:
        """Count a row whose image cannot be read; `stored` is the mode and range of one whose values are unclear."""
        self.rows += 1
        add_bounded(self.skipped, reason_group(reason), MAX_REASONS)
        if stored is not None:
            self._widen(*stored)

    def add(self, facts: Facts, size: int) -> None:
        """Count a row whose image has these facts and so many encoded bytes."""
        self.rows += 1
        self.encoded += size
        self.rotated += facts.is_rotated
        self.grey += facts.is_grey
        self.one_colour += int((np.count_nonzero(facts.histogram, axis=1) == 1).all())
        self.several_frames += facts.has_frames
        self.formats[facts.format] += 1
        self.modes[facts.mode] += 1
        self.bits[facts.bits] += 1
        self.heights[facts.height] += 1
        self.widths[facts.width] += 1
        add_bounded(self.sizes, f"{facts.width}x{facts.height}", MAX_SIZES)
        self._widen(facts.mode, facts.stored_range)
        self.histogram += facts.histogram

    def _widen(self, mode: str, values: tuple[float, float] | list[float]) -> None:
        low, high = self.ranges.get(mode, values)
        self.ranges[mode] = [min(low, values[0]), max(high, values[1])]

    def merge(self, other: "ImageSummary") -> None:
        """Add what another account counted."""
        for name, value in vars(other).items():
            if isinstance(value, dict) and not isinstance(value, Counter):
                for mode, values in value.items():
                    self._widen(mode, values)
            else:
                # In place: a histogram is added to, a counter keeps its kind.
                setattr(self, name, getattr(self, name) + value)

    def state_dict(self) -> dict[str, Any]:
        """Return everything counted, as JSON can hold it."""
        state = {name: sorted(value.items(), key=str) if isinstance(value, Counter) else value
                 for name, value in vars(self).items()}  # fmt: skip
        return state | {"histogram": self.histogram.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ImageSummary":
        """Return the account of which this is the state."""
        account = cls()
        for name, value in state.items():
            kind = type(getattr(account, name))
            counted = Counter(dict(value)) if kind is Counter else value
            setattr(account, name, np.array(value, np.int64) if name == "histogram" else counted)
        return account

    def summary(self) -> dict[str, Any]:
        """Return the account as `inspect.json` holds it; mean and std are of the decoded pixels on the 0..1 scale."""
        mean, std, pixels = statistics(self.histogram)
        return {
            "rows": self.rows,
            "readable": self.readable,
            "skipped": most_common(self.skipped),
            "encoded_bytes": self.encoded,
            "pixels": pixels,
            "formats": most_common(self.formats),
            "modes": most_common(self.modes),
            "bits_per_channel": most_common(self.bits),
            "stored_values": {mode: self.ranges[mode] for mode in sorted(self.ranges)},
            "height": spread(self.heights),
            "width": spread(self.widths),
            "most_frequent_sizes": most_common(self.sizes, 10),
            "different_sizes": len(self.sizes) - (OTHER in self.sizes),
            "mean": mean,
            "std": std,
            "grey": self.grey,
            "one_colour": self.one_colour,
            "exif_rotated": self.rotated,
            "several_frames": self.several_frames,
        }


def statistics(histogram: np.ndarray) -> tuple[list[float] | None, list[float] | None, int]:
    """Return mean and standard deviation a channel on the 0..1 scale and the pixels counted in a histogram [3,256].

    The sums are whole numbers of Python, which do not overflow; only the last divisions round.
    """
    counts = histogram.astype(object)
    pixels = int(counts[0].sum())
    if not pixels:
        return None, None, 0
    values = np.arange(256).astype(object)
    sums, squares = (counts * values).sum(axis=1), (counts * values**2).sum(axis=1)
    mean = [int(total) / pixels / 255 for total in sums]
    std = [((pixels * int(s2) - int(s1) ** 2) / pixels**2) ** 0.5 / 255 for s1, s2 in zip(sums, squares, strict=True)]
    return mean, std, pixels


def most_common(counts: Counter, limit: int | None = None) -> dict[str, int]:
    """Return counts by name, the largest first, equal ones by name."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return {str(key): count for key, count in ranked[:limit]}


def spread(counts: Counter) -> dict[str, float] | None:
    """Return the smallest, the median, the largest and the most frequent of counted numbers; None without any."""
    if not counts:
        return None
    values = np.array(sorted(counts))
    ends = np.cumsum([counts[value] for value in values.tolist()])
    middle = [values[np.searchsorted(ends, place, side="right")] for place in ((ends[-1] - 1) // 2, ends[-1] // 2)]
    frequent = min(counts, key=lambda value: (-counts[value], value))
    return {"min": int(values[0]), "median": float(np.mean(middle)), "max": int(values[-1]), "most_frequent": frequent}
