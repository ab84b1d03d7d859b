"""What the stored values of an image mean: one rule for training, the image processor and the demos.

It lies with the models because a saved image processor carries its code and may import nothing else of the package.

1. 8 bits a channel are 0 to 255. A declared `value_range` does not concern them.
2. More than 8 bits: the range is that of the file's depth tags (TIFF: BitsPerSample 12, MaxSampleValue where it is
   2^n - 1; PNG: sBIT 16), else the declared `value_range` (low, high), else TIFF's SMinSampleValue and
   SMaxSampleValue. Low becomes 0 and high 255; values outside are refused.
3. With no range known, unsigned 16-bit values are 0 to 65535 if the largest is above 4095, and refused otherwise: they
   may be 12 bits or fewer in 16. (An image of zeros is black.) An sBIT below 16 changes nothing: the PNG
   specification has such values scaled to the full range.
4. With no range known, floats are 0 to 1 if they all lie there, and refused otherwise.
5. With no range known, signed and 32-bit integers are refused.

NaN and infinity are black. What is transparent is laid on white. ICC profiles are ignored.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile


Range = tuple[float, float]

# Larger values cannot be 12 bits or fewer in 16.
AMBIGUOUS_MAX = 4095
TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
# EXIF's orientations 2 to 8, and the turn that undoes each.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """An image that cannot be decoded, or whose values have no known range."""


def rgb_pixels(image: Image.Image, value_range: Range | None = None) -> np.ndarray:
    """Return a PIL image of any mode, upright, as RGB uint8 [H,W,3]; raises `BadImage` for values of unknown range.

    Colours of 16 bits are read in full only while the image is not loaded: Pillow keeps their high bytes, and once it
    has loaded a PNG nothing tells them from colours of 8 bits.
    """
    check_range(value_range)
    value_range = None if value_range is None else (value_range[0], value_range[1])
    wide = _wide_rawmode(image)
    if isinstance(image, ImageFile.ImageFile) and wide.startswith(("RGB;", "RGBX;", "RGBA;")) and image.tile:
        return _wide_colours(image, wide, value_range)
    if wide:
        return _high_bytes(image, wide.partition(";")[0], value_range)
    # The tags are lost with the first turn.
    known, inverted, dtype = _depth_range(image), _is_white_zero(image), _true_dtype(image)
    known = known or value_range or _sample_range(image)
    transparent = _transparent_value(image)
    image = upright(image)
    if dtype is None:
        return np.asarray(to_rgb(image))
    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="))
    values = values.view(dtype) if values.dtype.itemsize == np.dtype(dtype).itemsize else values.astype(dtype)
    grey = as_bytes(values, known)
    grey = 255 - grey if inverted else grey
    if transparent is not None:
        grey[values == transparent] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def as_bytes(values: np.ndarray, value_range: Range | None) -> np.ndarray:
    """Scale 16-bit, 32-bit or float values to uint8 by the rule above; raises `BadImage` if their range is unknown."""
    kind = f"{'float' if values.dtype.kind == 'f' else values.dtype.name} values"
    finite = np.isfinite(values) if values.dtype.kind == "f" else None
    numbers = values if finite is None or finite.all() else values[finite]
    least, most = (numbers.min(), numbers.max()) if numbers.size else (0, 0)
    if value_range is None:
        if values.dtype == np.uint16 and (most > AMBIGUOUS_MAX or most == 0):
            value_range = (0, 65535)
        elif values.dtype.kind == "f" and least >= 0 and most <= 1:
            value_range = (0, 1)
        elif values.dtype == np.uint16:
            accepted = "two numbers, such as 0 4095 for 12 bits in 16, or 0 65535 for dark images of full range"
            raise BadImage(f"value_range: got none for {kind} from {least} to {most}, accepted: {accepted}")
        else:
            accepted = "two numbers: what is black and what is white"
            raise BadImage(f"value_range: got none for {kind} from {least:g} to {most:g}, accepted: {accepted}")
    low, high = value_range
    if least < low or most > high:
        raise BadImage(
            f"value_range: got {low:g} {high:g} for {kind} from {least:g} to {most:g}, accepted: a range that holds "
            "them all"
        )
    if finite is not None:
        values = np.where(finite, values, low)
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def check_range(value_range: Any) -> None:
    """Raise `ValueError` unless this is None or two finite numbers, the first below the second."""
    if value_range is None:
        return
    try:
        low, high = (float(value) for value in value_range)
        fits = np.isfinite(low) and np.isfinite(high) and low < high
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"value_range: got {value_range!r}, accepted: two numbers, the first below the second")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of 8 bits a channel or fewer to RGB, on white where it is transparent."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8) that Pillow has not yet applied."""
    # Of TIFF, Pillow applies it when it loads, and its size is that of the upright image from the start.
    return 1 if image.format == "TIFF" else stored_orientation(image) or 1


def stored_orientation(image: Image.Image) -> int | None:
    """Return the orientation (1 to 8) in the EXIF or TIFF data of an image, None if there is none that can be read."""
    try:
        # Pillow decodes a whole PNG in search of EXIF data behind its pixels.
        is_ahead = image.format == "PNG" and not _has_late_words(image)
        exif = Image.Image.getexif(image) if is_ahead else image.getexif()
        number = exif.get(ExifTags.Base.Orientation)
    except Exception:
        # Broken EXIF data raise almost anything.
        return None
    return number if number in range(1, 9) else None


def upright(image: Image.Image) -> Image.Image:
    """Load a PIL image and turn it as its EXIF orientation says; broken EXIF data turn nothing."""
    image.load()
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        # So that nobody turns it again.
        turned.info.pop(name, None)
    return turned


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", None) or {}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def _true_dtype(image: Image.Image) -> str | None:
    """Return the dtype of the stored values unless they are 8 bits unsigned; Pillow's mode alone does not say."""
    is_signed, bits = _first(_tags(image).get(339)) == 2, _first(_tags(image).get(258))
    if image.mode == "L":
        return "int8" if is_signed and bits == 8 else None
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode == "I":
        if image.format in ("PNG", "PPM"):
            return "uint16"
        return "uint32" if bits == 32 and not is_signed else "int32"
    return "float32" if image.mode == "F" else None


def _depth_range(image: Image.Image) -> Range | None:
    """Return the range that the file's own tags of depth give, or None."""
    if image.format == "PPM" and image.mode == "I":
        # Pillow scales them by the file's own maximum.
        return 0, 65535
    if image.format == "PNG" and image.mode.startswith("I"):
        return (0, 65535) if min(_significant_bits(image), default=0) == 16 else None
    tags = _tags(image)
    if not tags or image.mode == "F":
        return None
    if _first(tags.get(258)) == 12:
        return 0, 4095
    most = _first(tags.get(281))
    # Anything else is a statistic of the image: its largest value, not its range.
    is_depth = isinstance(most, int) and most >= 255 and not most & (most + 1)
    return (0, most) if is_depth else None


def _sample_range(image: Image.Image) -> Range | None:
    low, high = (_first(_tags(image).get(tag)) for tag in (340, 341))
    try:
        sample_range = float(low), float(high)
        check_range(sample_range)
    except (TypeError, ValueError):
        return None
    return sample_range


def _is_white_zero(image: Image.Image) -> bool:
    """Say whether 0 is white; Pillow itself inverts 8 bits and fewer."""
    return _first(_tags(image).get(262)) == 0


def _transparent_value(image: Image.Image) -> int | None:
    """Return the grey value of a PNG that is transparent; Pillow leaves those of 2 and 4 bits unscaled until here."""
    value = image.info.get("transparency")
    if not isinstance(value, int):
        return None
    tile = getattr(image, "tile", None)
    step = {"L;2": 85, "L;4": 17}.get(tile[0][3] if tile and isinstance(tile[0][3], str) else "", 1)
    if image.format == "PNG" and step > 1:
        image.info["transparency"] = value * step
    return value * step


def _significant_bits(image: Image.Image) -> tuple[int, ...]:
    """Return the sBIT chunk of a PNG file that is not loaded yet, or nothing."""
    for name, content in _png_chunks(image):
        if name in (b"sBIT", b"IDAT"):
            return tuple(content) if name == b"sBIT" else ()
    return ()


def _has_late_words(image: Image.Image) -> bool:
    """Say whether metadata follow the pixels of a PNG file that is not loaded yet."""
    names = [name for name, _ in _png_chunks(image)]
    late = names[names.index(b"IDAT") :] if b"IDAT" in names else []
    return any(name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") for name in late)


def _png_chunks(image: Image.Image) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and first four bytes of the chunks of a PNG file that is not loaded yet; it is left where it was."""
    if image.format != "PNG" or not isinstance(image, ImageFile.ImageFile) or not image.tile or image.fp is None:
        return
    file, place = image.fp, image.fp.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            start = file.read(min(size, 4))
            yield name, start
            file.seek(size - len(start) + 4, 1)
    finally:
        file.seek(place)


def _wide_rawmode(image: Image.Image) -> str:
    """Return Pillow's name of the stored layout of colours with 16 bits each, or "" for any other image."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK"):
        return ""
    tile, is_wide = getattr(image, "tile", None), _first(_tags(image).get(258)) == 16
    if not tile:
        return f"{image.mode};16" if is_wide else ""
    arguments = tile[0][3]
    rawmode = arguments if isinstance(arguments, str) else _first(arguments)
    if is_wide and _first(_tags(image).get(284)) == 2:
        if tile[0][0] == "raw":
            # Pillow takes them for planes of 8 bits.
            raise BadImage("got uncompressed 16-bit colours in separate planes, accepted: colours pixel by pixel")
        return f"{image.mode} planes;16"
    return rawmode if isinstance(rawmode, str) and ";16" in rawmode else ""


def _wide_colours(image: ImageFile.ImageFile, rawmode: str, value_range: Range | None) -> np.ndarray:
    """Read colours of 16 bits: the high bytes are pixels at full range; for any other, both bytes are read."""
    known = _depth_range(image) or value_range
    transparent = image.info.get("transparency")
    file = image.fp
    assert file is not None, "it is not loaded yet"
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    # A copy: once loaded, the image itself would give other pixels the second time.
    high = upright(Image.open(io.BytesIO(data), formats=[image.format or ""]))
    colours = np.asarray(high)[..., :3]
    if known in (None, (0, 65535)) and transparent is None and (known or colours.max(initial=0) > AMBIGUOUS_MAX >> 8):
        return np.asarray(to_rgb(high))
    # The same data read with the bytes the other way round: Pillow then keeps the low ones.
    low = Image.open(io.BytesIO(data), formats=[image.format or ""])
    swap = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}
    layout = rawmode[:-1] + swap[rawmode[-1]]
    low.tile = [_with_layout(tile, layout) for tile in low.tile]
    values = colours.astype(np.uint16) << 8 | np.asarray(upright(low))[..., :3]
    is_full = known == (0, 65535) or (known is None and values.max(initial=0) > AMBIGUOUS_MAX)
    pixels = colours if is_full else as_bytes(values, known)
    if high.mode == "RGBA":
        pixels = np.asarray(to_rgb(Image.fromarray(np.dstack([pixels, np.asarray(high)[..., 3]]))))
    if isinstance(transparent, tuple):
        pixels = np.where((values == transparent).all(-1, keepdims=True), np.uint8(255), pixels)
    return pixels


def _high_bytes(image: Image.Image, name: str, value_range: Range | None) -> np.ndarray:
    """Read 16-bit colours of which Pillow gives nothing but the high bytes: at full range, or not at all."""
    known = _depth_range(image) or value_range
    image = upright(image)
    most = np.asarray(image)[..., : 1 if name == "LA" else 3].max(initial=0) if name != "CMYK" else 255
    is_dark = known is None and most <= AMBIGUOUS_MAX >> 8
    if is_dark or known not in (None, (0, 65535)):
        given = f"{known[0]:g} {known[1]:g}" if known else "none"
        raise BadImage(
            f"value_range: got {given} for 16-bit {name} values, of which only the high bytes can be read, accepted: "
            "0 65535"
        )
    return np.asarray(to_rgb(image))


def _with_layout(tile: Any, layout: str) -> Any:
    arguments = layout if isinstance(tile[3], str) else (layout, *tile[3][1:])
    return (*tile[:3], arguments)
