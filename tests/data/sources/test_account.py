"""What a source was taken for, in a few lines."""

import io
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinov3_hf.data.sources.account import describe_source
from dinov3_hf.data.streams import load_source


def picture(width=8):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_folder_of_classes_and_splits(tmp_path):
    write(tmp_path, {f"train/{kind}/{n}.png": picture(8 + n) for kind in "ab" for n in range(3)})
    write(tmp_path, {"test/a/1.png": b"broken", "test/a/2.heic": b"", "notes.txt": b"", ".cache/x": b""})
    rows = load_source(str(tmp_path))
    account = describe_source(str(tmp_path), "train", rows)
    assert account.splits == {"test": 1, "train": 6} and account.rows == 6 and account.classes == ["a", "b"]
    assert account.columns == {"image": "images", "label": "classes"}
    assert account.skipped == {"hidden files or folders": 1, ".heic files": 1, ".txt files": 1}
    assert account.lines() == [
        f"data: {tmp_path}: images in folders of classes, split train of test 1, train 6",
        "  rows 6; columns image (images), label (classes)",
        "  2 classes: a, b",
        "  6 images looked at: 8x8 to 10x8, 0 unreadable",
        "  skipped: 1 hidden files or folders, 1 .heic files, 1 .txt files",
    ]
    broken = describe_source(str(tmp_path), "test", load_source(str(tmp_path), "test"))
    assert (broken.looked_at, broken.unreadable) == (1, 1)


@pytest.mark.parametrize("streaming", [True, False])
def test_parquet_from_footers(tmp_path, streaming):
    for split, count in (("train", 300), ("test", 2)):
        (tmp_path / split).mkdir()
        pq.write_table(pa.table({"scan": [picture()] * count, "text": ["a"] * count}), tmp_path / split / "0.parquet")
    account = describe_source(str(tmp_path), "train", load_source(str(tmp_path), streaming=streaming))
    assert account.splits == {"test": 2, "train": 300} and account.rows == 300 and account.looked_at == 200
    assert account.columns == {"scan": "images", "text": "text"}


def test_what_needs_a_full_pass_is_unknown(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("1.png", "2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            tar.addfile(info, io.BytesIO(picture()))
    account = describe_source(str(tmp_path), "train", load_source(str(tmp_path)))
    assert account.rows is None and "rows unknown" in account.lines()[1] and account.looked_at == 2


def test_the_account_ends_in_time(tmp_path, monkeypatch):
    write(tmp_path, {f"{n}.png": picture() for n in range(50)})
    rows = load_source(str(tmp_path))

    def slow(value):
        time.sleep(0.05)
        return 8, 8

    monkeypatch.setattr("dinov3_hf.data.sources.account.SECONDS", 0.3)
    monkeypatch.setattr("dinov3_hf.data.pixels.read_size", slow)
    start = time.monotonic()
    account = describe_source(str(tmp_path), "train", rows)
    assert time.monotonic() - start < 1 and 0 < account.looked_at < 10


def test_scenes_and_objects(tmp_path):
    rows = load_source("scenes", num_images=4)
    assert describe_source("scenes", "train", rows).kind == "rendered scenes"
    write(tmp_path, {"images/1.png": picture(), "labels/1.txt": b"0 .5 .5 1 1\n", "data.yaml": b"names: [cat]\n"})
    account = describe_source(str(tmp_path), "train", load_source(str(tmp_path)))
    assert account.columns == {"image": "images", "objects": "boxes"} and account.classes == ["cat"]
