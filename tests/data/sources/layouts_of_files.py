"""Parquet files, tars, saved and missing sources: how each is made, what is asked of it, and what it gives."""

import pandas as pd
import pyarrow as pa

from .layout_makers import LABEL, ONLY, TWO, also, expect, parquet, picture, put, saved, tar


FILES = {
    # Parquet.
    "Parquet below split folders": (
        also(parquet("train/0.parquet", 3), parquet("test/0.parquet")),
        "@test",
        expect(2),
    ),
    "Parquet below split folders, none such": (
        also(parquet("train/0.parquet"), parquet("test/0.parquet")),
        "@validation",
        "split: got 'validation', accepted: test, train",
    ),
    "Parquet below Train": (also(parquet("Train/0.parquet", 3), parquet("TEST/0.parquet")), "", expect(3)),
    "Parquet, splits all": (also(parquet("train/0.parquet", 3), parquet("test/0.parquet")), "@all", expect(5)),
    "Parquet of configurations": (
        also(parquet("a/train/0.parquet"), parquet("b/train/0.parquet")),
        "",
        r"splits of their own, accepted: \S+/a, \S+/b",
    ),
    "Parquet, names of splits": (also(parquet("my_train-0.parquet", 3), parquet("my_test-0.parquet")), "", expect(3)),
    "Parquet, no word of a split": (also(parquet("trains.parquet"), parquet("testimony.parquet")), "", expect(4)),
    "Parquet, some name a split": (also(parquet("train-0.parquet"), parquet("x.parquet")), "", "some name a split"),
    "Parquet, two splits in one name": (parquet("train/test-0.parquet"), "", r"names two splits \(train, test\)"),
    "bytes in a column of pandas": (
        lambda root: pd.DataFrame({"content": [picture(), picture(1)], "n": [1, 2]}).to_parquet(root / "x.parquet"),
        "",
        expect(2, None, ["content", "n"]),
    ),
    "large binary (polars)": (
        parquet("x.parquet", table=lambda: pa.table({"photo": pa.array([picture()], pa.large_binary())})),
        "",
        expect(1, None, ["photo"]),
    ),
    "a record under another name": (
        parquet("x.parquet", table=lambda: pa.table({"scan": TWO})),
        "",
        expect(2, None, ["scan"]),
    ),
    "img2dataset": (
        parquet("x.parquet", table=lambda: pa.table({"url": ["http://x/1"], "caption": ["a"], "jpg": [picture()]})),
        "",
        expect(1, None, ["url", "caption", "jpg"]),
    ),
    "images next to other bytes": (
        parquet("x.parquet", table=lambda: pa.table({"scan": [picture()], "vector": [b"12345678"]})),
        "",
        expect(1, None, ["scan", "vector"]),
    ),
    "two columns of images": (
        parquet("x.parquet", table=lambda: pa.table({"left": [picture()], "right": [picture()]})),
        "",
        r"several image columns \(left, right\), accepted: one of its columns",
    ),
    "bytes that are no images": (
        parquet("x.parquet", table=lambda: pa.table({"vector": [b"12345678"]})),
        "",
        "has no image column, accepted",
    ),
    "addresses": (
        parquet("x.parquet", table=lambda: pa.table({"image_url": ["http://x/1"], "text": ["a"]})),
        "",
        "addresses in 'image_url': download them first",
    ),
    "lists of images": (
        parquet("x.parquet", table=lambda: pa.table({"images": [TWO]})),
        "",
        "lists of images in 'images'",
    ),
    "text": (
        parquet("x.parquet", table=lambda: pa.table({"text": ["a"]})),
        "",
        r"no image column, accepted: .*\(text\)",
    ),
    "names of files": (
        parquet("x.parquet", table=lambda: pa.table({"path": ["1.png"]})),
        "",
        "names of files in 'path'",
    ),
    "empty Parquet": (parquet("x.parquet", table=lambda: pa.table({"image": TWO})[:0]), "", "have no rows"),
    "one empty Parquet file": (
        also(parquet("a.parquet", table=lambda: pa.table({"image": TWO})[:0]), parquet("b.parquet")),
        "",
        expect(2, None, ONLY),
    ),
    "Parquet of other columns": (
        also(parquet("a.parquet"), parquet("b.parquet", table=lambda: pa.table({"image": TWO, "x": [1, 2]}))),
        "",
        r"a.parquet and b.parquet differ in columns \(x\)",
    ),
    "a broken Parquet file": (
        lambda root: put(root, {"x.parquet": "junk"}),
        "",
        "cannot be read: Parquet file size is 4",
    ),
    "files of Spark": (
        also(parquet("part-0.snappy.parquet"), lambda root: put(root, {"_SUCCESS": "", ".part-0.crc": "x"})),
        "",
        expect(2, None, ONLY),
    ),
    "a pattern of another split": (
        parquet("test-0.parquet"),
        "/test-*.parquet",
        expect(2, note="files named test are read as split train"),
    ),
    "a folder of another split": (parquet("test-0.parquet"), "", "split: got 'train', accepted: test"),
    "Hive partitions": (
        also(parquet("label=a/0.parquet"), parquet("label=b/0.parquet")),
        "",
        expect(4, None, ONLY, note="folders called label=... give no column"),
    ),
    # Tars.
    "a tar with a json": (
        tar("x.tar", {"1.png": picture(), "1.json": '{"label": 2}', "2.png": picture(1), "2.json": '{"label": 3}'}),
        "",
        expect(2, None, ["png", "json", "__key__", "__url__"]),
    ),
    "a tar of several suffixes": (
        tar("x.tar", {"1.png": picture(), "1.cls": "4", "2.jpg": picture(1, kind="JPEG"), "2.cls": "5", "2.txt": "b"}),
        "",
        expect(2, None, ["image", "cls", "txt", "__key__"], cls=[4, 5], txt=[None, "b"]),
    ),
    "a tar of a Mac": (
        tar("x.tar", {"1.png": picture(), "1.cls": "4", "__MACOSX/._1.png": "x"}),
        "",
        expect(1, None, ["image", "cls", "__key__"], cls=[4]),
    ),
    "a tar with json of some": (
        tar("x.tar", {"1.png": picture(), "1.json": '{"a": 1}', "2.png": picture(), "3.png": picture()}),
        "",
        expect(3, None, ["image", "json", "__key__"]),
    ),
    "a tar of two images a sample": (
        tar("x.tar", {"1.left.png": picture(), "1.right.png": picture()}),
        "",
        r"several image columns \(left.png, right.png\)",
    ),
    "tars next to their tables": (
        also(tar("0.tar", {"1.png": picture()}), parquet("0.parquet", table=lambda: pa.table({"url": ["http://x"]}))),
        "",
        expect(1),
    ),
    "tars below split folders": (
        also(tar("train/0.tar", {"1.png": picture()}), tar("val/0.tar", {"2.png": picture(), "3.png": picture()})),
        "@validation",
        expect(2),
    ),
    # Saved and remote.
    "DatasetDict.save_to_disk": (saved("dict"), "@test", expect(2, ["a", "b"], LABEL)),
    "DatasetDict.save_to_disk, none such": (saved("dict"), "@dev", "split: got 'dev', accepted: test, train"),
    "Dataset.save_to_disk": (saved("rows"), "", expect(2, ["a", "b"], LABEL)),
    "a hub id with dots": (lambda root: None, "=nobody/set.v1.0", "is no local path and the hub did not give it"),
    "a missing file": (lambda root: None, "/x.parquet", "nothing found at"),
    "a missing folder to read": (
        lambda root: None,
        "classes:/gone",
        "nothing found at .*accepted: an existing folder",
    ),
}
