"""The files below a folder that may hold data, and what was skipped among them."""

import functools
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path


# Suffixes of the images that `decode_image` reads: the names that Pillow gives to raster images.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "avif", "avifs", "gif", "bmp", "dib", "tif", "tiff"),
    *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "tga", "icb", "vda", "vst", "ppm", "pgm", "pbm", "pnm", "pfm"),
    *("qoi", "mpo", "psd", "sgi", "bw", "rgb", "rgba", "ras", "pcx", "dcx", "dds", "blp", "ico", "icns", "im", "xbm"),
    "xpm",
)
# Images of which a person may expect that they are read, which they are not.
OTHER_IMAGES = (
    "heic",
    "heif",
    "svg",
    "dcm",
    "nii",
    "npy",
    "npz",
    "exr",
    "hdr",
    "cr2",
    "nef",
    "arw",
    "dng",
    "mat",
    "h5",
)
HIDDEN = re.compile(r"^(\..*|__MACOSX|@eaDir|Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information)$")
WORD = re.compile("[A-Za-z][A-Za-z0-9]*")
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|....ftyp(avif|avis)|\0\0\0\x0cjP|"
    rb"\xff\x4f\xff\x51|qoif|P[1-6]\s|8BPS|DDS ",
    re.DOTALL,
)


@dataclass
class Listing:
    """The visible files below `root`, as sorted paths relative to it, and how many others were skipped, by reason."""

    root: Path
    files: list[str]
    skipped: dict[str, int] = field(default_factory=dict)
    complete: bool = True

    def images(self) -> list[str]:
        """Return the images: files with a suffix of an image, and files without a suffix that begin like one."""
        bare = [file for file in self.by_suffix.get("", []) if begins_like_an_image(self.root / file)]
        return sorted([*self.named(*IMAGE_EXTENSIONS), *bare])

    def named(self, *suffixes: str) -> list[str]:
        """Return the files with one of these suffixes."""
        return sorted(file for suffix in suffixes for file in self.by_suffix.get(suffix, []))

    @functools.cached_property
    def by_suffix(self) -> dict[str, list[str]]:
        """The files of each suffix."""
        files: dict[str, list[str]] = {}
        for file in self.files:
            files.setdefault(suffix_of(file), []).append(file)
        return files


def suffix_of(file: str) -> str:
    """Return the suffix of a file name in lower case without its dot; what is no word ("v2 final", "001") is none."""
    stem, dot, suffix = file.rpartition("/")[2].rpartition(".")
    return suffix.lower() if stem and dot and WORD.fullmatch(suffix) else ""


def begins_like_an_image(path: Path) -> bool:
    """Say whether the first bytes of a file are those of an image."""
    try:
        with open(path, "rb") as file:
            return MAGIC.match(file.read(16)) is not None
    except OSError:
        return False


def scan(root: Path, seconds: float | None = None) -> Listing:
    """List a folder and those below it, through links too; after so many `seconds` the listing ends incomplete."""
    end = None if seconds is None else time.monotonic() + seconds
    listing = Listing(root, [])
    folders = [("", frozenset({os.path.realpath(root)}))]
    while folders:
        if end is not None and time.monotonic() > end:
            listing.complete = False
            break
        folder, above = folders.pop()
        for entry in os.scandir(root / folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            reason = _why_skipped(entry)
            if reason is None and entry.is_dir():
                # A link to a folder above would never end.
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{root}/{name}"
                if real in above:
                    reason = "links to a folder above"
                else:
                    folders.append((name, above | {real}))
            elif reason is None:
                listing.files.append(name)
            if reason is not None:
                listing.skipped[reason] = listing.skipped.get(reason, 0) + 1
    listing.files.sort()
    return listing


def _why_skipped(entry: "os.DirEntry[str]") -> str | None:
    if HIDDEN.match(entry.name):
        return "hidden files or folders"
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "names that are not UTF-8"
    return None if entry.is_dir() or entry.is_file() else "links that lead nowhere"
