"""Kinds of pixel values: each has the pixels that plain numpy computes, or one line of refusal, everywhere alike."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import dinov3_hf
from dinov3_hf import Dinov3ImageProcessor
from dinov3_hf.data.depths import read_stored
from dinov3_hf.data.masks import read_mask
from dinov3_hf.data.pixels import BadImage, check_turned_alike, decode_image, read_size
from dinov3_hf.errors import Refused
from dinov3_hf.pipelines.inputs import InputError, read_image


RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = np.full((6, 9), 255, np.uint8)
ALPHA[:3] = 0
RAMP = np.linspace(0, 1, 54).reshape(6, 9)
FULL = np.round(RAMP * 65535).astype(np.uint16)
TWELVE = np.round(RAMP * 4095).astype(np.uint16)
COLOURS = RNG.integers(0, 65536, (6, 9, 3)).astype(np.uint16)
DARK = RNG.integers(0, 4096, (6, 9, 3)).astype(np.uint16)


def save(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values, tags=None, kind=1, bits=None, photometric=1, order="<", deflated=False):
    """A plain TIFF file of one strip; `kind` is its SampleFormat (1 unsigned, 2 signed, 3 float)."""
    values = np.ascontiguousarray(values)
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        nibbles = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:]
        data = b"".join(np.packbits(row).tobytes() for row in nibbles.reshape(values.shape[0], -1))
    data = zlib.compress(data) if deflated else data
    bits = bits or values.dtype.itemsize * 8
    entries = {
        256: values.shape[1],
        257: values.shape[0],
        259: 8 if deflated else 1,
        262: photometric,
        277: channels,
        278: len(values),
    }
    entries |= {258: (bits,) * channels, 273: 0, 279: len(data), 339: (kind,) * channels} | (tags or {})
    start, extra, body = 8 + 2 + 12 * len(entries) + 4, b"", b""
    sizes = {number: len(np.atleast_1d(value)) for number, value in entries.items()}
    more = sum(
        (4 if isinstance(np.atleast_1d(v)[0], np.floating) else 2) * sizes[n]
        for n, v in entries.items()
        if sizes[n] > 2
    )
    entries[273] = start + more
    for number in sorted(entries):
        found = np.atleast_1d(entries[number])
        letter, code = ("f", 11) if found.dtype.kind == "f" else ("I", 4) if found.max() > 65535 else ("H", 3)
        packed = struct.pack(f"{order}{len(found)}{letter}", *found.tolist())
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", start + len(extra)), extra + packed
        body += struct.pack(f"{order}HHI", number, code, len(found)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    assert len(extra) == more
    return head + body + bytes(4) + extra + data


def planes(values, deflated=False):
    """The same, with each of three colours in a strip of its own."""
    strips = [np.ascontiguousarray(values[..., colour]).tobytes() for colour in range(3)]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    height, width = values.shape[:2]
    entries = {256: width, 257: height, 259: 8 if deflated else 1, 262: 2, 277: 3, 278: height, 284: 2, 339: 1}
    after = 8 + 2 + 12 * (len(entries) + 3) + 4
    places = [after + 30 + sum(map(len, strips[:number])) for number in range(3)]
    lines = {number: struct.pack("<HHIHH", number, 3, 1, value, 0) for number, value in entries.items()}
    for number, code, place in ((258, 3, after), (273, 4, after + 6), (279, 4, after + 18)):
        lines[number] = struct.pack("<HHII", number, code, 3, place)
    extra = struct.pack("<3H3I3I", *[values.dtype.itemsize * 8] * 3, *places, *map(len, strips))
    body = b"".join(lines[number] for number in sorted(lines))
    return struct.pack("<2sHIH", b"II", 42, 8, len(lines)) + body + bytes(4) + extra + b"".join(strips)


# Adam7: first row and column, and the steps of each pass.
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(values, colour, bits, chunks=(), interlaced=False):
    """A plain PNG file; `chunks` are pairs of name and data, written before the pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def lines(pixels):
        rows = pixels.reshape(len(pixels), -1).astype(">u2" if bits == 16 else np.uint8)
        if bits < 8:
            digits = np.unpackbits(rows[..., None], axis=2)[..., 8 - bits :].reshape(len(rows), -1)
            rows = np.packbits(digits, axis=1)
        return b"".join(b"\0" + row.tobytes() for row in rows)

    parts = [values[a::c, b::d] for a, b, c, d in PASSES] if interlaced else [values]
    data = b"".join(lines(part) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def scaled(values, low, high):
    """What 0 to 255 are for values of a range, by exact arithmetic on whole numbers or doubles."""
    return np.floor((values.astype(np.float64) - low) / (high - low) * 255 + 0.5)


def on_white(colours, alpha):
    return np.where(alpha[..., None] > 0, colours, 255)


def palette(transparency=None):
    image = Image.fromarray(GREY % 4).convert("P")
    image.putdata((GREY % 4).ravel())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    return save(image, **({} if transparency is None else {"transparency": transparency}))


PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 210, 220]])[GREY % 4]
CMYK = Image.fromarray(RGB).convert("CMYK")
INK = np.asarray(CMYK).astype(float)
BILEVEL = GREY > 127
SIGNED = (RAMP * 2000 - 1000).round()
NAN = np.where(RAMP < 0.1, np.nan, RAMP).astype(np.float32)

# Name, file, declared range, and the pixels or how the refusal begins.
TABLE = [
    ("8-bit grey PNG", save(GREY), None, GREY),
    ("8-bit RGB PNG", save(RGB), None, RGB),
    ("8-bit RGB BMP", save(RGB, "BMP"), None, RGB),
    ("8-bit RGB PPM", save(RGB, "PPM"), None, RGB),
    ("8-bit RGB TIFF, LZW", save(RGB, "TIFF", compression="tiff_lzw"), None, RGB),
    ("8-bit lossless WebP", save(RGB, "WEBP", lossless=True), None, RGB),
    ("8 bits do not read a declared range", save(RGB), (0, 4095), RGB),
    ("1 bit PNG", save(Image.fromarray(BILEVEL)), None, BILEVEL * 255),
    ("1 bit TIFF", save(Image.fromarray(BILEVEL), "TIFF"), None, BILEVEL * 255),
    ("2-bit grey PNG", png(GREY % 4, 0, 2), None, GREY % 4 * 85),
    ("4-bit grey PNG", png(GREY % 16, 0, 4), None, GREY % 16 * 17),
    ("2-bit grey PNG, 3 transparent", png(GREY % 4, 0, 2, [(b"tRNS", b"\0\3")]), None, GREY % 4 * 85),
    (
        "4-bit grey PNG, 5 transparent",
        png(GREY % 16, 0, 4, [(b"tRNS", b"\0\5")]),
        None,
        np.where(GREY % 16 == 5, 255, GREY % 16 * 17),
    ),
    (
        "8-bit grey PNG, 7 transparent",
        png(GREY % 16, 0, 8, [(b"tRNS", b"\0\7")]),
        None,
        np.where(GREY % 16 == 7, 255, GREY % 16),
    ),
    (
        "grey with alpha PNG",
        save(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")),
        None,
        on_white(GREY[..., None], ALPHA),
    ),
    ("RGB with alpha PNG", save(np.dstack([RGB, ALPHA])), None, on_white(RGB, ALPHA)),
    ("RGB with alpha WebP", save(np.dstack([RGB, ALPHA]), "WEBP", lossless=True), None, on_white(RGB, ALPHA)),
    ("RGB with alpha TIFF", save(np.dstack([RGB, ALPHA]), "TIFF"), None, on_white(RGB, ALPHA)),
    ("palette PNG", palette(), None, PALETTE),
    ("palette PNG, one transparent", palette(2), None, np.where((GREY % 4 == 2)[..., None], 255, PALETTE)),
    ("palette PNG, several transparent", palette(b"\0\0\xff\xff"), None, on_white(PALETTE, (GREY % 4 > 1))),
    ("palette GIF", save(Image.open(io.BytesIO(palette())), "GIF"), None, PALETTE),
    ("CMYK TIFF", save(CMYK, "TIFF"), None, (255 - INK[..., :3]) * (255 - INK[..., 3:]) / 255),
    ("ICC profile is ignored", save(RGB, icc_profile=b"any" * 50), None, RGB),
    ("white is zero, 8 bits TIFF", tiff(GREY, photometric=0), None, 255 - GREY),
    ("white is zero, 16 bits TIFF", tiff(FULL, photometric=0), None, 255 - scaled(FULL, 0, 65535)),
    ("16-bit full range PNG", save(FULL), None, scaled(FULL, 0, 65535)),
    ("16-bit full range TIFF, little endian", tiff(FULL), None, scaled(FULL, 0, 65535)),
    ("16-bit full range TIFF, big endian", tiff(FULL, order=">"), None, scaled(FULL, 0, 65535)),
    (
        "16-bit full range TIFF, deflated",
        save(FULL, "TIFF", compression="tiff_adobe_deflate"),
        None,
        scaled(FULL, 0, 65535),
    ),
    ("16-bit full range PGM", save(FULL, "PPM"), None, scaled(FULL, 0, 65535)),
    ("16-bit full range JPEG 2000", save(FULL, "JPEG2000"), None, scaled(FULL, 0, 65535)),
    (
        "12 bits in a PGM that says so",
        b"P5 9 6 4095\n" + TWELVE.astype(">u2").tobytes(),
        None,
        scaled(TWELVE, 0, 4095),
    ),
    ("12 bits packed TIFF", tiff(TWELVE, bits=12), None, scaled(TWELVE, 0, 4095)),
    ("12 bits in 16, no word of it", tiff(TWELVE), None, "value_range: got none for uint16 values from 0 to 4095"),
    ("12 bits in 16, PNG", save(TWELVE), None, "value_range: got none for uint16 values from 0 to 4095"),
    ("12 bits in 16, declared", tiff(TWELVE), (0, 4095), scaled(TWELVE, 0, 4095)),
    ("12 bits in 16, PNG, declared", save(TWELVE), (0, 4095), scaled(TWELVE, 0, 4095)),
    ("12 bits in 16, MaxSampleValue", tiff(TWELVE, {281: 4095}), None, scaled(TWELVE, 0, 4095)),
    ("10 bits in 16, MaxSampleValue", tiff(TWELVE // 4, {280: 0, 281: 1023}), None, scaled(TWELVE // 4, 0, 1023)),
    ("MaxSampleValue is a statistic", tiff(TWELVE, {281: 4000}), None, "value_range: got none for uint16"),
    (
        "MaxSampleValue is too low",
        tiff(FULL, {281: 4095}),
        None,
        "value_range: got 0 4095 for uint16 values from 0 to 65535",
    ),
    ("10 bits in 16, declared", tiff(TWELVE // 4), (0, 1023), scaled(TWELVE // 4, 0, 1023)),
    ("14 bits in 16, declared", tiff(TWELVE * 4), (0, 16383), scaled(TWELVE * 4, 0, 16383)),
    (
        "16 bits beyond the declared range",
        tiff(FULL),
        (0, 4095),
        "value_range: got 0 4095 for uint16 values from 0 to 65535",
    ),
    ("16 bits, dark, declared full range", tiff(TWELVE), (0, 65535), scaled(TWELVE, 0, 65535)),
    ("16 bits, all black", tiff(TWELVE * 0), None, TWELVE * 0),
    ("16-bit PNG, sBIT 16, dark", png(TWELVE, 0, 16, [(b"sBIT", b"\x10")]), None, scaled(TWELVE, 0, 65535)),
    (
        "16-bit PNG, sBIT 12, scaled",
        png(TWELVE << 4, 0, 16, [(b"sBIT", b"\x0c")]),
        None,
        scaled(TWELVE << 4, 0, 65535),
    ),
    (
        "16-bit PNG, sBIT 12, unscaled",
        png(TWELVE, 0, 16, [(b"sBIT", b"\x0c")]),
        None,
        "value_range: got none for uint16",
    ),
    (
        "16-bit grey PNG, one transparent",
        png(FULL, 0, 16, [(b"tRNS", struct.pack(">H", FULL[2, 2]))]),
        None,
        np.where(FULL == FULL[2, 2], 255, scaled(FULL, 0, 65535)),
    ),
    ("16-bit RGB PNG", png(COLOURS, 2, 16), None, COLOURS >> 8),
    ("16-bit RGB TIFF, little endian", tiff(COLOURS, photometric=2), None, COLOURS >> 8),
    ("16-bit RGB TIFF, big endian", tiff(COLOURS, photometric=2, order=">"), None, COLOURS >> 8),
    ("12 bits in 16-bit RGB PNG", png(DARK, 2, 16), None, "value_range: got none for uint16"),
    ("12 bits in 16-bit RGB PNG, declared", png(DARK, 2, 16), (0, 4095), scaled(DARK, 0, 4095)),
    ("12 bits in 16-bit RGB TIFF, declared", tiff(DARK, photometric=2), (0, 4095), scaled(DARK, 0, 4095)),
    ("12 bits in 16-bit RGB TIFF, big endian", tiff(DARK, photometric=2, order=">"), (0, 4095), scaled(DARK, 0, 4095)),
    (
        "12 bits in 16-bit RGB, MaxSampleValue",
        tiff(DARK, {281: (4095,) * 3}, photometric=2),
        None,
        scaled(DARK, 0, 4095),
    ),
    ("16-bit RGB PNG beyond the range", png(COLOURS, 2, 16), (0, 4095), "value_range: got 0 4095"),
    ("16-bit RGB PNG, all black", png(DARK * 0, 2, 16), None, DARK * 0),
    (
        "16-bit RGB PNG, one transparent",
        png(COLOURS, 2, 16, [(b"tRNS", COLOURS[1, 1].astype(">u2").tobytes())]),
        None,
        np.where((COLOURS == COLOURS[1, 1]).all(-1, keepdims=True), 255, COLOURS >> 8),
    ),
    (
        "16-bit RGBA PNG, 12 bits declared",
        png(np.dstack([DARK, ALPHA.astype(np.uint16) * 257]), 6, 16),
        (0, 4095),
        on_white(scaled(DARK, 0, 4095), ALPHA),
    ),
    (
        "16-bit grey with alpha PNG",
        png(np.dstack([FULL, ALPHA.astype(np.uint16) * 257]), 4, 16),
        None,
        on_white((FULL >> 8)[..., None], ALPHA),
    ),
    (
        "16-bit grey with alpha PNG, declared",
        png(np.dstack([FULL, ALPHA.astype(np.uint16) * 257]), 4, 16),
        (0, 4095),
        "value_range: got 0 4095 for 16-bit LA values",
    ),
    ("1-bit PNG, interlaced", png(BILEVEL.astype(np.uint8), 0, 1, interlaced=True), None, BILEVEL * 255),
    ("4-bit grey PNG, interlaced", png(GREY % 16, 0, 4, interlaced=True), None, GREY % 16 * 17),
    ("8-bit RGB PNG, interlaced", png(RGB, 2, 8, interlaced=True), None, RGB),
    ("16-bit grey PNG, interlaced", png(FULL, 0, 16, interlaced=True), None, scaled(FULL, 0, 65535)),
    ("12 bits in 16-bit RGB PNG, interlaced", png(DARK, 2, 16, interlaced=True), (0, 4095), scaled(DARK, 0, 4095)),
    ("16-bit RGB TIFF, deflated", tiff(COLOURS, photometric=2, deflated=True), None, COLOURS >> 8),
    (
        "12 bits in 16-bit RGB TIFF, deflated",
        tiff(DARK, photometric=2, deflated=True),
        (0, 4095),
        scaled(DARK, 0, 4095),
    ),
    (
        "12 bits in 16-bit RGB TIFF, deflated, big endian",
        tiff(DARK, photometric=2, deflated=True, order=">"),
        (0, 4095),
        scaled(DARK, 0, 4095),
    ),
    ("12 bits in 16-bit RGB TIFF, no word of it", tiff(DARK, photometric=2), None, "value_range: got none for uint16"),
    ("12 bits in 16, deflated", tiff(TWELVE, {281: 4095}, deflated=True), None, scaled(TWELVE, 0, 4095)),
    (
        "float TIFF, deflated",
        tiff(RAMP.astype(np.float32), kind=3, deflated=True),
        None,
        scaled(RAMP.astype(np.float32), 0, 1),
    ),
    (
        "float TIFF, big endian",
        tiff(SIGNED.astype(np.float32), kind=3, order=">"),
        (-1000, 1000),
        scaled(SIGNED, -1000, 1000),
    ),
    (
        "signed 16 bits, big endian",
        tiff(SIGNED.astype(np.int16), kind=2, order=">"),
        (-1024, 3071),
        scaled(SIGNED, -1024, 3071),
    ),
    ("8-bit RGB TIFF in planes", planes(RGB), None, RGB),
    ("16-bit RGB TIFF in planes", planes(COLOURS), None, "got uncompressed 16-bit colours in separate planes"),
    ("16-bit RGB TIFF in planes, deflated", planes(COLOURS, deflated=True), None, COLOURS >> 8),
    ("12 bits in 16-bit RGB TIFF in planes", planes(DARK, True), (0, 4095), "value_range: got 0 4095 for 16-bit RGB"),
    ("signed 8 bits", tiff(GREY.view(np.int8), kind=2), None, "value_range: got none for int8 values"),
    ("signed 8 bits, declared", tiff(GREY.view(np.int8), kind=2), (-128, 127), scaled(GREY.view(np.int8), -128, 127)),
    (
        "signed 16 bits",
        tiff(SIGNED.astype(np.int16), kind=2),
        None,
        "value_range: got none for int32 values from -1000 to",
    ),
    ("signed 16 bits, declared", tiff(SIGNED.astype(np.int16), kind=2), (-1024, 3071), scaled(SIGNED, -1024, 3071)),
    ("signed 32 bits, small", tiff(GREY.astype(np.int32), kind=2), None, "value_range: got none for int32 values"),
    ("signed 32 bits, declared", tiff(GREY.astype(np.int32), kind=2), (0, 255), GREY),
    ("unsigned 32 bits", tiff(FULL.astype(np.uint32) << 16), None, "value_range: got none for uint32"),
    (
        "unsigned 32 bits, declared",
        tiff(FULL.astype(np.uint32) << 16),
        (0, 2**32 - 1),
        scaled(FULL.astype(float) * 65536, 0, 2**32 - 1),
    ),
    ("float from 0 to 1", tiff(RAMP.astype(np.float32), kind=3), None, scaled(RAMP.astype(np.float32), 0, 1)),
    (
        "float from -1000 to 1000",
        tiff(SIGNED.astype(np.float32), kind=3),
        None,
        "value_range: got none for float values from -1000 to 1000",
    ),
    ("float, declared", tiff(SIGNED.astype(np.float32), kind=3), (-1000, 1000), scaled(SIGNED, -1000, 1000)),
    (
        "float, SMinSampleValue and SMaxSampleValue",
        tiff(SIGNED.astype(np.float32), {340: np.float32(-1000), 341: np.float32(1000)}, kind=3),
        None,
        scaled(SIGNED, -1000, 1000),
    ),
    (
        "float, declared against SMaxSampleValue",
        tiff(SIGNED.astype(np.float32), {340: np.float32(-1000), 341: np.float32(1000)}, kind=3),
        (-2000, 2000),
        scaled(SIGNED, -2000, 2000),
    ),
    ("float from 0 to 255", tiff(GREY.astype(np.float32), kind=3), None, "value_range: got none for float values"),
    ("float, NaN is black", tiff(NAN, kind=3), None, scaled(np.nan_to_num(NAN), 0, 1)),
    ("float of NaN alone", tiff(NAN * np.nan, kind=3), None, GREY * 0),
    (
        "float PFM",
        b"Pf\n9 6\n-1.0\n" + RAMP.astype("<f4")[::-1].tobytes(),
        None,
        scaled(RAMP.astype(np.float32), 0, 1),
    ),
    ("64-bit float TIFF", tiff(RAMP, kind=3), None, "UnidentifiedImageError|OSError|KeyError|SyntaxError"),
    (
        "16-bit float TIFF",
        tiff(RAMP.astype(np.float16), kind=3),
        None,
        "UnidentifiedImageError|OSError|KeyError|SyntaxError",
    ),
]


def test_the_table_is_long_enough():
    assert len(TABLE) >= 40 and len({row[0] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("name, file, declared, expected", TABLE, ids=[row[0] for row in TABLE])
def test_every_kind_has_its_pixels_in_training_and_in_the_processor(name, file, declared, expected, tmp_path):
    processor = Dinov3ImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, value_range=declared)
    path = tmp_path / "file"
    path.write_bytes(file)
    if isinstance(expected, str):
        with pytest.raises(BadImage, match=f"^({expected})") as error:
            decode_image(file, value_range=declared)
        assert "\n" not in str(error.value)
        if expected.startswith("value_range"):
            with pytest.raises(ValueError, match=f"^({expected})"):
                processor(Image.open(io.BytesIO(file)))
            with pytest.raises(
                InputError, match="^This image (has more than 8 bits|is no image)|^This file is no image"
            ):
                read_image(path, value_range=declared)
        return
    found = decode_image(file, value_range=declared)
    assert found.dtype == torch.uint8 and read_size(file) == tuple(found.shape[1:]) == (6, 9)
    expected = np.broadcast_to(expected if expected.ndim == 3 else expected[..., None], (6, 9, 3))
    # Pillow's conversion of CMYK rounds in its own way.
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= ("CMYK" in name)
    assert torch.equal(processor(Image.open(io.BytesIO(file)), return_tensors="pt").pixel_values[0], found)
    if not file.startswith((b"Pf", b"\0\0\0\x0cjP")):
        shown = torch.from_numpy(np.array(read_image(path, value_range=declared))).permute(2, 0, 1)
        assert torch.equal(shown, found)


def test_a_loaded_image_reads_as_its_file_or_is_refused():
    """But for 16-bit colours of PNG, and for what only the file says, Pillow's own object holds all that counts."""
    for name, file, declared, expected in TABLE:
        is_lost = "sBIT 16" in name or "transparent" in name or ("RGB" in name and "PNG" in name and "16-bit" in name)
        if isinstance(expected, str) or is_lost:
            continue
        image = Image.open(io.BytesIO(file))
        image.load()
        if name.startswith("12 bits in 16-bit RGB"):
            with pytest.raises(BadImage, match="of which only the high bytes can be read, accepted: 0 65535$"):
                decode_image(image, value_range=declared)
        else:
            assert torch.equal(decode_image(image, value_range=declared), decode_image(file, value_range=declared)), (
                name
            )


def test_the_same_image_object_reads_the_same_twice():
    for name, file, declared, expected in TABLE:
        if isinstance(expected, str) or "sBIT 16" in name:
            continue
        image = Image.open(io.BytesIO(file))
        first = decode_image(image, value_range=declared)
        assert torch.equal(decode_image(image, value_range=declared), first), name


@pytest.mark.parametrize("declared", [(1, 1), (2, 1), (0, float("nan")), (0,), "no", 5, (None, 1)])
def test_a_range_is_two_numbers(declared):
    for make in (
        lambda: decode_image(save(RGB), value_range=declared),
        lambda: Dinov3ImageProcessor(value_range=declared),
    ):
        with pytest.raises(ValueError, match="^value_range: got .*accepted: two numbers, the first below the second"):
            make()


def test_the_rule_is_one_text():
    folder = Path(dinov3_hf.__file__).parent
    copy = folder / "models" / "pixel_values_dinov3.py"
    assert copy.read_bytes() == (folder / "data" / "pixel_values.py").read_bytes()


# Orientation

TURNED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
BLOCKS = np.kron(RNG.integers(0, 256, (3, 4, 1), dtype=np.uint8), np.ones((16, 16, 3), np.uint8))
WRITTEN = {"PNG": {}, "JPEG": {"quality": 100}, "TIFF": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", WRITTEN)
def test_every_orientation_is_upright_everywhere(kind, number, tmp_path):
    if kind not in Image.SAVE and Image.init() and kind not in Image.SAVE:
        pytest.skip(f"Pillow cannot write {kind} here")
    exif = Image.Exif()
    exif[0x0112] = number
    file = save(BLOCKS, kind, exif=exif, **WRITTEN[kind])
    found, expected = decode_image(file), TURNED[number](BLOCKS)
    assert tuple(found.shape[1:]) == expected.shape[:2] == read_size(file)
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 3
    processor = Dinov3ImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(processor(Image.open(io.BytesIO(file)), return_tensors="pt").pixel_values[0], found)
    (tmp_path / "file").write_bytes(file)
    shown = read_image(tmp_path / "file")
    assert torch.equal(processor(shown, return_tensors="pt").pixel_values[0], found)


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_orientation_of_sixteen_bits(kind, number):
    exif = Image.Exif()
    exif[0x0112] = number
    file = save(FULL, kind, exif=exif)
    expected = TURNED[number](scaled(FULL, 0, 65535))
    assert np.array_equal(decode_image(file)[0].numpy(), expected) and read_size(file) == expected.shape


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_maps_are_turned_as_their_own_data_say(kind, number):
    exif = Image.Exif()
    exif[0x0112] = number
    file = {"bytes": save(FULL, kind, exif=exif)}
    assert np.array_equal(read_stored(file), TURNED[number](FULL))
    file = {"bytes": save(GREY, kind, exif=exif)}
    assert np.array_equal(read_mask(file).numpy(), TURNED[number](GREY))


def test_a_map_that_may_lie_either_way_is_refused_by_name():
    def stored(pixels, number, kind="PNG"):
        exif = Image.Exif()
        if number:
            exif[0x0112] = number
        return save(pixels, kind, **({"exif": exif} if number else {}))

    square = RGB[:6, :6]
    for kind in ("PNG", "JPEG", "TIFF"):
        for number in (2, 3, 4):
            with pytest.raises(Refused, match=f"^mask_column: row 7 has an image of orientation {number}"):
                check_turned_alike(stored(RGB, number, kind), stored(GREY, None), 7, "mask_column")
            check_turned_alike(stored(RGB, number, kind), stored(GREY, 1), 7, "mask_column")
            check_turned_alike(stored(RGB, number, kind), stored(GREY, number, "TIFF"), 7, "mask_column")
        for number in (5, 6, 7, 8):
            # Here the sides tell.
            check_turned_alike(stored(RGB, number, kind), stored(GREY, None), 7, "mask_column")
            with pytest.raises(Refused, match="^mask_column: row 7"):
                check_turned_alike(stored(square, number, kind), stored(GREY[:, :6], None), 7, "mask_column")
        for number in (None, 1):
            check_turned_alike(stored(square, number, kind), stored(GREY, None), 7, "mask_column")


def test_orientation_behind_the_pixels_of_a_png_counts_and_none_is_decoded_for_it(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = save(RGB, exif=exif)
    start = file.index(b"eXIf") - 4
    size = 12 + struct.unpack(">I", file[start : start + 4])[0]
    plain, end = file[:start] + file[start + size :], 12
    late = plain[:-end] + file[start : start + size] + plain[-end:]
    assert read_size(late) == read_size(file) == tuple(decode_image(late).shape[1:]) == (9, 6)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert read_size(plain) == (6, 9) and read_size(file) == (9, 6)


# Corrupted files


def corrupted(draw, number):
    """A table's file cut, or with some of its bits flipped."""
    data = bytearray(draw.choice(np.array([row[1] for row in TABLE], dtype=object)))
    if number % 2:
        return bytes(data[: draw.integers(1, len(data))])
    for place in draw.integers(0, 8 * len(data), draw.integers(1, 20)):
        data[place // 8] ^= 1 << place % 8
    return bytes(data)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_corrupted_files_raise_bad_image_alone(count):
    draw, bad = np.random.default_rng(1), 0
    for number in range(count):
        file = corrupted(draw, number)
        for read in (lambda file: decode_image(file, max_pixels=10**6), read_size):
            try:
                read(file)
            except BadImage as error:
                bad += 1
                assert "\n" not in str(error)
    assert bad > count / 3
