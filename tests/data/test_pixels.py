"""Every kind of image becomes RGB with the right pixels, and every kind of broken file one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dinov3_hf.data.pixels import BadImage, decode_image, read_size


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def same(decoded, expected, tolerance=0):
    assert decoded.dtype == torch.uint8 and decoded.is_contiguous()
    found = decoded.permute(1, 2, 0).numpy().astype(int)
    assert found.shape == expected.shape and np.abs(found - expected.astype(int)).max() <= tolerance


def test_bytes_dictionary_path_and_picture_agree(tmp_path):
    image = Image.fromarray(pixels())
    data = encoded(image)
    (tmp_path / "a.png").write_bytes(data)
    stored = ({"bytes": data, "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")})
    for value in (data, bytearray(data), memoryview(data), *stored, image):
        same(decode_image(value), pixels())
        assert read_size(value) == (6, 9)


def test_grey_and_sixteen_bit():
    grey = pixels()[..., 0]
    same(decode_image(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))
    wide = grey.astype(np.uint16) * 257
    same(decode_image(encoded(Image.fromarray(wide))), np.repeat(grey[..., None], 3, axis=2))
    same(decode_image(encoded(Image.fromarray(wide), "TIFF")), np.repeat(grey[..., None], 3, axis=2))


def test_transparency_is_laid_on_white():
    rgba = np.dstack([pixels(), np.full((6, 9), 255, np.uint8)])
    rgba[:3, :, 3] = 0
    expected = pixels()
    expected[:3] = 255
    same(decode_image(encoded(Image.fromarray(rgba))), expected)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.info["transparency"] = 0
    same(decode_image(encoded(palette, transparency=0)), np.array([[[255] * 3, [40, 50, 60]]]))


def test_cmyk_and_palette():
    cmyk = Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8)).convert("CMYK")
    same(decode_image(encoded(cmyk, "TIFF")), np.full((8, 8, 3), (200, 100, 50)), 1)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    same(decode_image(encoded(palette)), np.array([[[10, 20, 30], [40, 50, 60]]]))


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    decoded = decode_image(encoded(Image.fromarray(pixels()), "PNG", exif=exif))
    same(decoded, np.rot90(pixels(), -1))


def test_broken_exif_data_spoil_no_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words" * 9
    # The text gets the number of a field of whole numbers: Pillow fails to write it back when it rotates.
    data = exif.tobytes().replace(b"\x01\x0e\x00\x02", b"\x01\x20\x00\x02")
    image = encoded(Image.fromarray(pixels()), "JPEG", quality=100, exif=data)
    with pytest.raises(Exception):  # noqa: B017
        ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    # What can be read of them counts.
    assert decode_image(image).shape == (3, 9, 6) and read_size(image) == (9, 6)
    exif[0x0112] = 77
    assert decode_image(encoded(Image.fromarray(pixels()), "JPEG", exif=exif)).shape == (3, 6, 9)


def test_values_that_are_no_numbers_are_black():
    values = np.array([[np.nan, 100, 200], [np.inf, -5, 50]], np.float32)
    expected = np.array([[0, 131, 255], [0, 0, 68]])
    decoded = decode_image(encoded(Image.fromarray(values), "TIFF"), value_range=(-5, 200))
    same(decoded, np.repeat(expected[..., None], 3, axis=2))


def test_pillow_warns_of_nothing(recwarn):
    """Sizes Pillow accepts with a warning, and cut metadata."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "words" * 9
    decode_image(encoded(Image.fromarray(pixels()), "JPEG", exif=exif.tobytes()[:-20]))
    with pytest.raises(BadImage, match="truncated"):
        decode_image(huge_png(10_000))
    assert not recwarn.list


def test_the_tensor_owns_its_memory():
    source = Image.fromarray(pixels())
    for image in (source, source.crop((0, 0, 1, 1))):
        decoded = decode_image(image)
        decoded.zero_()
        assert decoded.is_contiguous() and np.array_equal(np.asarray(source), pixels())


def huge_png(side=100_000):
    """A valid header that promises so many pixels a side (ten thousand million in all), then nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    )


@pytest.mark.parametrize(
    "value, reason",
    [
        (b"", "empty"),
        (b"not an image at all", "cannot identify"),
        (np.random.default_rng(0).bytes(5000), "cannot identify"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)), "JPEG")[
                :2000
            ],
            "truncated",
        ),
        (encoded(Image.fromarray(pixels()))[:60], ""),
        (huge_png(), "pixels|bomb"),
        (None, "NoneType"),
        (7, "int"),
        ({"bytes": None, "path": None}, "NoneType"),
        ({"bytes": None, "path": "/nowhere/a.png"}, "No such file"),
    ],
)
def test_broken_files_give_one_line(value, reason):
    with pytest.raises(BadImage, match=f"(?i){reason}") as error:
        decode_image(value)
    assert "\n" not in str(error.value)


def test_pixel_limit_is_checked_before_decoding():
    with pytest.raises(BadImage, match="6x4 pixels, accepted: at most 23"):
        decode_image(encoded(Image.new("RGB", (6, 4))), max_pixels=23)
    assert decode_image(encoded(Image.new("RGB", (6, 4))), max_pixels=24).shape == (3, 4, 6)
