"""A thousand corrupted files among a thousand good ones: all counted, none fatal, no good one lost."""

import io
import itertools
import struct
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dinov3_hf.data.pixels import BadImage, decode_image
from dinov3_hf.data.streams import RowStream, StreamError, load_source
from dinov3_hf.training.arguments import CropArguments, DataArguments
from dinov3_hf.training.batches.collate import TrainingBatches


GOOD = 1000
CORRUPTED = {"truncated": 200, "random": 200, "text": 200, "empty": 200, "huge": 200}
REASONS = {
    "truncated": "truncated",
    "random": "cannot identify",
    "text": "cannot identify",
    "empty": "the file is empty",
    "huge": "DecompressionBombError",
}


def good(number):
    """A one-coloured picture that tells its number, whether PNG or JPEG."""
    buffer = io.BytesIO()
    colour = (number % 10 * 25, number // 10 % 10 * 25, number // 100 * 25)
    Image.new("RGB", (40, 30), colour).save(
        buffer, ("PNG", "JPEG")[number % 2], **({"quality": 95} if number % 2 else {})
    )
    return buffer.getvalue()


def number_of(pixels):
    return int((pixels.float().mean((1, 2)) / 25).round() @ pixels.new_tensor([1, 10, 100]).float())


def corrupted(kind, draw):
    if kind == "truncated":
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
        # Never only the end marker, without which the picture is still whole.
        return buffer.getvalue()[: draw.integers(700, len(buffer.getvalue()) - 50)]
    if kind == "random":
        return draw.bytes(draw.integers(10, 5000))
    if kind == "text":
        return b"<html><body>404: this image has moved</body></html>"
    if kind == "huge":

        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + data
    return b""


@pytest.fixture(scope="module")
def files():
    """Name and content of every file, in random order; the name begins with what the file is."""
    draw = np.random.default_rng(0)
    found = [(f"good-{number}.jpg", good(number)) for number in range(GOOD)]
    for kind, count in CORRUPTED.items():
        found += [(f"{kind}-{number}.jpg", corrupted(kind, draw)) for number in range(count)]
    return [found[index] for index in draw.permutation(len(found))]


@pytest.fixture(params=["folder", "parquet"])
def rows(request, tmp_path, files):
    if request.param == "folder":
        for name, data in files:
            (tmp_path / name).write_bytes(data)
    else:
        features = datasets.Features({"image": datasets.Image()})
        for shard in range(4):
            images = [{"bytes": data, "path": name} for name, data in files[shard::4]]
            table = datasets.Dataset.from_dict({"image": images}, features=features)
            table.to_parquet(str(tmp_path / f"{shard}.parquet"))
    return load_source(str(tmp_path), columns=[])


def name_of(row):
    return Path(row["image"]["path"]).name


def peak_memory():
    """Highest resident memory since `forget_peak`, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def test_all_bad_images_are_told_and_all_good_ones_come_through(rows, capfd):
    bad, numbers = Counter(), []
    measured = sys.platform == "linux"
    if measured:
        forget_peak()
        before = peak_memory()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in itertools.islice(RowStream(rows, 256, 0), GOOD + sum(CORRUPTED.values())):
            kind = name_of(row).partition("-")[0]
            try:
                numbers.append(number_of(decode_image(row["image"])))
                assert name_of(row) == f"good-{numbers[-1]}.jpg"
            except BadImage as error:
                assert REASONS[kind] in str(error) and "\n" not in str(error)
                bad[kind] += 1
    assert bad == CORRUPTED and sorted(numbers) == list(range(GOOD))
    # Neither Pillow nor the libraries below it say anything of their own.
    assert capfd.readouterr() == ("", "")
    assert not measured or peak_memory() - before < 150


def batches_of(rows, **fields):
    crops = CropArguments(global_crop_size=16, local_crop_size=8, local_crops=0)
    data = DataArguments(shuffle_block=256, num_workers=0, **fields)
    return TrainingBatches(rows, data, crops, 50, 0, 4)


def test_training_batches_count_them_and_go_on(rows):
    names = [name_of(row) for row in itertools.islice(RowStream(rows, 256, 0), 2000)]
    batches = list(itertools.islice(batches_of(rows, max_bad_images=0.7), 12))
    read = sum(batch["images_read"] for batch in batches)
    bad = [name for name in names[:read] if not name.startswith("good")]
    assert sum(batch["bad_images"] for batch in batches) == len(bad) == read - 600
    examples = [example for batch in batches for example in batch["bad_examples"]]
    assert [Path(example.split(": ")[0]).name for example in examples] == bad


def test_training_ends_beyond_the_accepted_share(rows):
    with pytest.raises(StreamError, match=r"max_bad_images: \d+ of \d+ images could not be used"):
        list(itertools.islice(batches_of(rows, max_bad_images=0.3), 40))
