"""The table of kinds of pixel values: what each file is, the range declared for it, and what plain numpy computes."""

import io
import struct

import numpy as np
from PIL import Image

from .image_writers import planes, png, save, tiff


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
