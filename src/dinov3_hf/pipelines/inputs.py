"""Reading untrusted uploads (an image, a clip, or words) within limits; errors are sentences for the user."""

import os
import struct
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageSequence

from ..errors import Refused
from ..models.pixel_values_dinov3 import BadImage, Range, rgb_pixels, to_rgb, upright


if TYPE_CHECKING:
    from av import VideoFrame, VideoStream

# Pillow reads many more formats, but some of their readers start other programs (EPS starts Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
ANIMATED_FORMATS = ("GIF", "PNG", "WEBP")
# Only containers that hold their frames: playlists would make the reader open other files and addresses.
CLIP_FORMATS = {"mov", "mp4", "matroska", "webm", "avi", "mpeg", "mpegts", "ogg"}
DEFAULT_RATE = 10.0
# Where a display matrix sends (x, y), y downwards: (ax + cy, bx + dy), as (a, b, c, d) in units of its scale.
MATRIX_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}


class InputError(Refused):
    """An error whose message is a plain sentence, to be shown to the user of a demo."""


@dataclass(frozen=True)
class Limits:
    """Upper limits of what is accepted; pixels are width times height."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    max_frames: int = 120
    max_clip_seconds: float = 30.0
    max_clip_pixels: int = 3_000_000_000
    max_prompts: int = 32
    max_prompt_length: int = 200
    max_images: int = 1000


LIMITS = Limits()


def read_image(
    path: str | os.PathLike | None, max_side: int | None = None, value_range: Range | None = None
) -> Image.Image:
    """Read an image file as RGB, rotated as its EXIF data say, and shrunk so that no side exceeds `max_side` pixels.

    Images of any mode are converted as in training; of an animation the first frame is read. `value_range` is that of
    the model's image processor. File size and number of pixels are checked before anything is decoded. Raises only
    `InputError`.
    """
    with _open(check_file(path, "image"), IMAGE_FORMATS) as image:
        _check_pixels(image.width * image.height, "image")
        try:
            if max_side is not None:
                # Lets the JPEG decoder decode at 1/2, 1/4 or 1/8 of the size, which is faster; other formats ignore
                # it.
                image.draft(None, (max_side, max_side))
            return _shrink(Image.fromarray(rgb_pixels(image, value_range)), max_side)
        except BadImage as error:
            raise InputError(
                f"This image has more than 8 bits a channel, and what is black and white in it is not known ({error})."
            ) from error
        except Exception as error:
            # On broken files Pillow's readers raise many kinds of errors (OSError, SyntaxError, struct.error, ...).
            raise InputError("This image is damaged or cut short: it cannot be read to its end.") from error


def read_clip(path: str | os.PathLike | None, max_side: int) -> tuple[list[Image.Image], float]:
    """Read a video file or an animated image: RGB frames, shrunk to `max_side` pixels, and the frames per second.

    If there are more than `LIMITS.max_frames`, only every second, fourth, ... frame of the whole clip is kept, so that
    memory does not grow with its length. Raises only `InputError`.
    """
    file = check_file(path, "clip")
    frames: list[Image.Image] = []
    step, last = 1, 0.0
    try:
        for index, (frame, last) in enumerate(_frames(file)):
            if last > LIMITS.max_clip_seconds:
                raise InputError(f"This clip is too long: at most {LIMITS.max_clip_seconds:.0f} seconds are accepted.")
            if (index + 1) * frame.width * frame.height > LIMITS.max_clip_pixels:
                raise InputError("This clip is too large: cut it, or make its frames smaller.")
            if index % step:
                continue
            if len(frames) == LIMITS.max_frames:
                frames, step = frames[::2], 2 * step
                if index % step:
                    continue
            frames.append(_shrink(frame, max_side))
    except InputError:
        raise
    except Exception as error:
        # As above: FFmpeg raises many kinds of errors too.
        raise InputError("This clip is damaged or of a kind we cannot read (MP4, WebM, GIF, ...).") from error
    if len(frames) < 2:
        raise InputError("This clip has fewer than two frames: upload a video or an animated image.")
    # `last` is the time at which the last frame read starts.
    return frames, index / last / step if last > 0 else DEFAULT_RATE


def read_prompts(text: str | None) -> list[str]:
    """Split a text at commas, semicolons and line ends into words or phrases, without duplicates.

    Raises `InputError` if there are none, too many, or one is too long.
    """
    text = text or ""
    if len(text) > LIMITS.max_prompts * (LIMITS.max_prompt_length + 2):
        raise InputError(f"This text is too long: at most {LIMITS.max_prompts} words or phrases are accepted.")
    for mark in ";\n\r":
        text = text.replace(mark, ",")
    # Invisible characters (control characters, direction marks) would not show, or would reverse the text around them.
    text = "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)
    by_word = {" ".join(part.lower().split()): " ".join(part.split()) for part in reversed(text.split(","))}
    by_word.pop("", None)
    prompts = list(reversed(by_word.values()))
    if not prompts:
        raise InputError("Type at least one word.")
    if len(prompts) > LIMITS.max_prompts:
        raise InputError(f"These are {len(prompts)} words or phrases: at most {LIMITS.max_prompts} are accepted.")
    if len(longest := max(prompts, key=len)) > LIMITS.max_prompt_length:
        raise InputError(
            f"A phrase has {len(longest)} characters: at most {LIMITS.max_prompt_length} are accepted. "
            "Put commas between words."
        )
    return prompts


def check_file(path: str | os.PathLike | None, kind: str) -> str | os.PathLike:
    """Return the path of an uploaded file; raises `InputError` for one that is missing, empty or too large."""
    if not path:
        raise InputError(f"Choose {'an' if kind == 'image' else 'a'} {kind} first.")
    try:
        size = os.path.getsize(path)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"This {kind} is no longer here: upload it again.") from error
    if size == 0:
        raise InputError("This file is empty.")
    if size > LIMITS.max_bytes:
        raise InputError(
            f"This file has {size / 2**20:.0f} MB: at most {LIMITS.max_bytes / 2**20:.0f} MB are accepted."
        )
    return path


def _open(path: str | os.PathLike, formats: tuple[str, ...]) -> Image.Image:
    Image.init()
    # Pillow may be built without some formats.
    readable = [name for name in formats if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Warnings about sizes, which are checked next, and about metadata, which are not used.
            warnings.simplefilter("ignore")
            return Image.open(path, formats=readable)
    except Image.DecompressionBombError:
        raise _too_many_pixels("image") from None
    except Exception as error:
        raise InputError("This file is no image we can read (PNG, JPEG, WebP, GIF, BMP, TIFF, ...).") from error


def _check_pixels(pixels: int, kind: str) -> None:
    if pixels > LIMITS.max_pixels:
        raise _too_many_pixels(kind)


def _too_many_pixels(kind: str) -> InputError:
    return InputError(f"This {kind} has too many pixels: at most {LIMITS.max_pixels // 10**6} million are accepted.")


def _shrink(image: Image.Image, max_side: int | None) -> Image.Image:
    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return image


def _frames(path: str | os.PathLike) -> Iterator[tuple[Image.Image, float]]:
    """Yield the frames of a clip, each with its start time in seconds."""
    try:
        image = _open(path, ANIMATED_FORMATS)
    except InputError:
        yield from _video_frames(path)
        return
    with image:
        _check_pixels(image.width * image.height, "clip")
        seconds = 0.0
        for frame in ImageSequence.Iterator(image):
            # Copied: the iterator goes on with the same image.
            yield to_rgb(upright(frame)).copy(), seconds
            # If a file gives no duration, browsers show a frame for a tenth of a second.
            seconds += frame.info.get("duration", 0) / 1000 or 1 / DEFAULT_RATE


def _video_frames(path: str | os.PathLike) -> Iterator[tuple[Image.Image, float]]:
    import av

    with open(path, "rb") as file, av.open(file) as container:
        if not CLIP_FORMATS & set(container.format.name.split(",")):
            raise InputError("This clip is of a kind we cannot read (MP4, WebM, GIF, ...).")
        if not container.streams.video:
            raise InputError("This file holds no pictures: upload a video.")
        stream = container.streams.video[0]
        _check_pixels(stream.codec_context.width * stream.codec_context.height, "clip")
        start = None
        for index, frame in enumerate(container.decode(stream)):
            # The size of frames may change within a stream.
            _check_pixels(frame.width * frame.height, "clip")
            time = frame.time if frame.time is not None else index / DEFAULT_RATE
            start = time if start is None else start
            yield _as_displayed(frame, stream), time - start


def _as_displayed(frame: "VideoFrame", stream: "VideoStream") -> Image.Image:
    """Return a frame as players show it: with square pixels, then turned or mirrored by its display matrix."""
    image = frame.to_image()
    ratio = stream.sample_aspect_ratio
    if ratio and ratio > 0 and ratio != 1:
        # Sides only shrink, so that the limits of pixels hold.
        size = (image.width, image.height / ratio) if ratio > 1 else (image.width * ratio, image.height)
        image = image.resize((max(round(size[0]), 1), max(round(size[1]), 1)), Image.Resampling.BICUBIC)
    from av.sidedata.sidedata import Type

    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return image
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    scale = max(abs(value) for value in (a, b, c, d)) or 1
    turn = MATRIX_TURNS.get((round(a / scale), round(b / scale), round(c / scale), round(d / scale)))
    # Whoever films holds the camera at quarters of a turn; other angles stay as they are.
    return image if turn is None else image.transpose(turn)
