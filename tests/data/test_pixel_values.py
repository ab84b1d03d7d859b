"""Kinds of pixel values: each has the pixels that plain numpy computes, or one line of refusal, everywhere alike."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov3_hf import Dinov3ImageProcessor
from dinov3_hf.data.pixels import BadImage, decode_image, read_size
from dinov3_hf.pipelines.inputs import InputError, read_image

from .image_writers import save
from .pixel_table import RGB, TABLE


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


def test_the_table_is_published():
    page = (Path(__file__).parents[2] / "docs" / "pixel_values.md").read_text()
    lines = ["| kind | declared range | |", "|---|---|---|"]
    for name, _, declared, expected in TABLE:
        limits = " to ".join(map(str, declared)) if declared else ""
        lines.append(f"| {name} | {limits} | {'refused' if isinstance(expected, str) else 'read'} |")
    table = "\n".join(lines)
    assert page.endswith(f"-->\n{table}\n"), table
