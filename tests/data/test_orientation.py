"""Orientations 1 to 8 of every format: images, masks and depth maps are upright, and sizes agree with pixels."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from dinov3_hf import Dinov3ImageProcessor
from dinov3_hf.data.depths import read_stored
from dinov3_hf.data.masks import read_mask
from dinov3_hf.data.pixels import check_turned_alike, decode_image, read_size
from dinov3_hf.errors import Refused
from dinov3_hf.pipelines.inputs import read_image

from .image_writers import save
from .pixel_table import FULL, GREY, RGB, RNG, scaled


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
