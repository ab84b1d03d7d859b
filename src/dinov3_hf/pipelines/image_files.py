"""Collections of images from untrusted uploads: files and zip archives, read one by one within limits."""

import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from ..models.pixel_values_dinov3 import Range
from .inputs import LIMITS, InputError, check_file, read_image


class ImageFiles:
    """Iterates over the images in files and zip archives; yields `None` for each that cannot be read.

    Archives are unpacked one file at a time; `value_range` is that of `read_image`. Raises `InputError` for an
    archive that cannot be opened, for no files, and for more than `LIMITS.max_images`.
    """

    def __init__(self, paths: Sequence[str | os.PathLike] | None, max_side: int, value_range: Range | None = None):
        self.max_side, self.value_range, self.count = max_side, value_range, 0
        self.files: list[tuple[Path, list[zipfile.ZipInfo] | None]] = []
        for path in paths or ():
            members = _members(path) if zipfile.is_zipfile(path) else None
            self.files.append((Path(path), members))
            self.count += 1 if members is None else len(members)
            # Checked before the next archive is opened.
            if self.count > LIMITS.max_images:
                raise InputError(f"These are too many files: at most {LIMITS.max_images} are accepted.")
        if not self.count:
            raise InputError("Choose at least one image, or a zip archive of images.")

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Image.Image | None]:
        for path, members in self.files:
            if members is None:
                yield self._read(path)
            else:
                yield from self._unpack(path, members)

    def _unpack(self, path: Path, members: list[zipfile.ZipInfo]) -> Iterator[Image.Image | None]:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            unpacked = Path(folder) / "image"
            for member in members:
                try:
                    with archive.open(member) as file:
                        # The sizes listed in an archive may be false: read one byte more than allowed, to detect
                        # larger files.
                        unpacked.write_bytes(file.read(LIMITS.max_bytes + 1))
                except Exception:
                    # Encrypted, damaged, or packed in a way Python does not know.
                    yield None
                else:
                    yield self._read(unpacked)

    def _read(self, path: Path) -> Image.Image | None:
        try:
            return read_image(path, self.max_side, self.value_range)
        except InputError:
            return None


def _members(path: str | os.PathLike) -> list[zipfile.ZipInfo]:
    """List the files of an archive, without folders and hidden files."""
    check_file(path, "archive")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:
        raise InputError("This archive is damaged.") from error
    names = [PurePosixPath(member.filename) for member in members]
    return [
        member
        for member, name in zip(members, names, strict=True)
        if not member.is_dir() and not name.name.startswith(".") and "__MACOSX" not in name.parts
    ]
