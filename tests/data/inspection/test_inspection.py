"""Facts and accounts of images: exact over all pixels, bounded, and the same after a stop."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dinov3_hf.data.inspection import facts as inspection
from dinov3_hf.data.inspection.facts import (
    OTHER,
    ImageSummary,
    add_bounded,
    encoded_bytes,
    look_at,
    plain,
    reason_group,
    spread,
    statistics,
)
from dinov3_hf.data.pixels import BadImage, decode_image


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(count, seed=0):
    """Return encoded images of several formats, modes and sizes."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(count):
        height, width = draw.integers(1, 40, 2)
        shape = (height, width) if index % 3 == 0 else (height, width, 3 + (index % 3 == 1))
        kind = "PNG" if len(shape) == 3 and shape[2] == 4 else ("JPEG", "PNG", "WEBP", "BMP")[index % 4]
        made.append(encoded(draw.integers(0, 256, shape, dtype=np.uint8), kind))
    return made


def account_of(images):
    account = ImageSummary()
    for data in images:
        account.add(look_at(data), len(data))
    return account


def test_statistics_are_those_of_all_pixels():
    images = pictures(120)
    summary = account_of(images).summary()
    pixels = np.concatenate([decode_image(data).numpy().reshape(3, -1) for data in images], axis=1) / 255
    np.testing.assert_allclose(summary["mean"], pixels.mean(1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(summary["std"], pixels.std(1), rtol=0, atol=1e-9)
    sizes = np.array([decode_image(data).shape[1:] for data in images])
    for side, values in zip(("height", "width"), sizes.T, strict=True):
        assert (summary[side]["min"], summary[side]["max"]) == (values.min(), values.max())
        assert summary[side]["median"] == np.median(values)
    assert summary["pixels"] == pixels.shape[1] and summary["rows"] == summary["readable"] == 120
    assert summary["encoded_bytes"] == sum(map(len, images))


def test_large_images_are_counted_in_pieces(monkeypatch):
    data = pictures(5)[1]
    whole = look_at(data).histogram
    monkeypatch.setattr(inspection, "CHUNK", 7)
    assert (look_at(data).histogram == whole).all() and whole.sum(axis=1).tolist() == [whole[0].sum()] * 3


def test_one_value_has_no_spread_and_huge_sums_do_not_overflow():
    histogram = np.zeros((3, 256), np.int64)
    histogram[:, 255] = 2**60
    mean, std, pixels = statistics(histogram)
    assert mean == [1, 1, 1] and std == [0, 0, 0] and pixels == 2**60
    assert statistics(np.zeros((3, 256), np.int64)) == (None, None, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.new("L", (5, 3), 9)), ("PNG", "L", 8, True)),
        (encoded(Image.new("1", (5, 3), 1)), ("PNG", "1", 1, True)),
        (encoded(Image.new("P", (5, 3), 1), "GIF"), ("GIF", "P", 8, True)),
        (encoded(Image.new("RGB", (5, 3), (1, 2, 3)), "TIFF"), ("TIFF", "RGB", 8, False)),
        (encoded(Image.new("CMYK", (5, 3), (1, 2, 3, 0)), "JPEG"), ("JPEG", "CMYK", 8, False)),
        (encoded(np.full((3, 5), 60000, np.uint16)), ("PNG", "I;16", 16, True)),
        (encoded(np.full((3, 5), 60000, np.uint16), "TIFF"), ("TIFF", "I;16", 16, True)),
    ],
)
def test_facts_of_one_image(data, expected):
    facts = look_at(data)
    assert (facts.format, facts.mode, facts.bits, facts.is_grey) == expected
    assert (facts.height, facts.width) == (3, 5) and not facts.is_rotated and not facts.has_frames
    if expected[1] == "I;16":
        assert facts.stored_range == (60000, 60000)


def test_rotation_and_frames_are_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = look_at(encoded(Image.new("RGB", (5, 3)), "JPEG", exif=exif), tile_size=4)
    assert facts.is_rotated and (facts.height, facts.width) == (5, 3) and max(facts.tile.size) == 4
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert look_at(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])).has_frames


def test_an_account_survives_json_and_adds_up():
    images = pictures(40)
    parts = [account_of(images[:15]), account_of(images[15:])]
    parts[0].skip("cut (12 bytes)", ("I;16", (3.0, 900.0)))
    parts[1].labels["cat"] += 2
    parts[1].labels[None] += 1
    again = [ImageSummary.from_state(json.loads(json.dumps(part.state_dict()))) for part in parts]
    assert [part.summary() for part in again] == [part.summary() for part in parts]
    assert again[1].labels == parts[1].labels
    again[0].merge(again[1])
    whole = account_of(images)
    whole.skip("cut (7 bytes)", ("I;16", (3.0, 900.0)))
    assert again[0].summary() == whole.summary() and whole.ranges["I;16"] == [3, 900]


def test_counts_are_bounded():
    counts = Counter()
    for key in range(10):
        add_bounded(counts, key % 7, 3)
    assert counts == {0: 2, 1: 2, 2: 2, OTHER: 4}
    assert spread(Counter({3: 1, 5: 1})) == {"min": 3, "median": 4.0, "max": 5, "most_frequent": 3}
    assert spread(Counter()) is None


def test_reasons_have_no_addresses_and_group():
    reason = plain("UnidentifiedImageError: cannot identify image file <_io.BytesIO object at 0x7f12a>\n")
    assert "0x" not in reason and "\n" not in reason
    assert reason_group("cut: 12 bytes") == reason_group("cut: 999 bytes") == "cut: N bytes"
    assert reason_group("value_range: got none for uint16 values from 0 to 12, accepted: two") == (
        "value_range: got none for uint16 values from N to N"
    )
    assert plain("a\tb\udcff") == "a\\tb\\udcff"


def test_bytes_of_every_kind_of_row(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"abc")
    for value in (b"abc", bytearray(b"abc"), str(file), {"bytes": None, "path": str(file)}, {"bytes": b"abc"}):
        assert encoded_bytes(value) == b"abc"
    for value, reason in ((None, "no image"), ({"bytes": None, "path": None}, "no image"), (3, "a int")):
        with pytest.raises(BadImage, match=reason):
            encoded_bytes(value)
    with pytest.raises(BadImage, match="FileNotFoundError: No such file"):
        encoded_bytes(str(tmp_path / "missing.png"))
