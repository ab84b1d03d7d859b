"""What a folder or file means: a table of layouts, each read as expected or refused in one line."""

import functools
import io
import itertools
import json
import os
import tarfile

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinov3_hf.data.listing import IMAGE_EXTENSIONS, suffix_of
from dinov3_hf.data.streams import RowStream, load_source
from dinov3_hf.errors import Refused


@functools.cache
def picture(value=0, mode="RGB", kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), (value, 0, 0) if mode == "RGB" else value).save(buffer, kind)
    return buffer.getvalue()


def put(root, files):
    """Write files: a list of names (images, or empty), or a dictionary of names and contents."""
    for index, name in enumerate(files):
        content = files[name] if isinstance(files, dict) else None
        if content is None:
            content = picture(index % 200) if suffix_of(name) in IMAGE_EXTENSIONS else b""
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def rows_of(count, **columns):
    """Rows as others write them: bytes in a record, without declared features."""
    return {"image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(count)]} | columns


def parquet(name, count=2, table=None):
    def make(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows_of(count)) if table is None else table(), root / name)

    return make


def tar(name, members):
    def make(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / name, "w") as file:
            for member, content in members.items():
                content = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(member)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))

    return make


def files(*names, **contents):
    return lambda root: put(root, {**dict.fromkeys(names), **contents.pop("content", {})} if contents else list(names))


def also(*makers):
    return lambda root: [make(root) for make in makers]


def link(target, name, to_folder=True):
    return lambda root: os.symlink(root / target, root / name, target_is_directory=to_folder)


def saved(kind):
    def make(root):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        columns = {"label": [0, 1]}
        of = {n: datasets.Dataset.from_dict(rows_of(2, **columns), features=features) for n in ("train", "test")}
        (datasets.DatasetDict(of) if kind == "dict" else of["train"]).save_to_disk(root)

    return make


def coco(names, categories=((3, "cat"), (7, "dog"))):
    images = [{"id": index, "file_name": name, "width": 8, "height": 8} for index, name in enumerate(names)]
    boxes = [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 3, "bbox": [0, 0, 8, 8], "iscrowd": 1},
    ]
    kinds = [{"id": number, "name": name} for number, name in categories]
    return json.dumps({"images": images, "annotations": boxes, "categories": kinds})


def voc(x0=2, y0=3, x1=5, y1=8, name="cat"):
    corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    return f"<annotation><object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"


def label_map():
    return picture(1, "L")


TREE = files("car/1.png", "car/2.png", "plane/3.png")
SPLITS = files("train/a/1.png", "train/b/2.png", "test/a/3.png")
TWO = [{"bytes": picture(0), "path": None}, {"bytes": picture(1), "path": None}]
WITH_MASKS = {"images": ["images/1.png", "images/2.png"], "masks": ["masks/1.png", "masks/2.png"]}


def masks(*names):
    return lambda root: put(root, {name: picture(1, "L") for name in names})


def expect(rows, classes=None, columns=None, **values):
    return {"rows": rows, "classes": classes, "columns": columns, **values}


ONLY = ["image"]
LABEL = ["image", "label"]
MASK = ["image", "mask"]
OBJECTS = ["image", "objects"]
IN_ORDER = {
    # Folders of classes.
    "class folders": (TREE, "", expect(3, ["car", "plane"], LABEL)),
    "class folders, any split": (TREE, "@test", expect(3, ["car", "plane"], LABEL)),
    "one class called like a split": (
        files("car/1.png", "plane/2.png", "train/3.png"),
        "",
        expect(3, ["car", "plane", "train"], LABEL),
    ),
    "a split next to one other folder": (
        files("train/1.png", "extra/2.png"),
        "",
        r"called like splits \(train\) next to others \(extra\), accepted: splits:\S+ .*classes:",
    ),
    "two splits next to another folder": (files("train/1.png", "test/2.png", "extra/3.png"), "", "next to others"),
    "a split next to a loose image": (files("train/1.png", "preview.png"), "", "images without a folder"),
    "classes: by request": (files("train/1.png", "extra/2.png"), "classes:", expect(2, ["extra", "train"], LABEL)),
    "splits: by request": (files("train/1.png", "extra/2.png"), "splits:", expect(1, None, ONLY)),
    "splits: without any": (TREE, "splits:", "no folders called like splits"),
    "images: without labels": (TREE, "images:", expect(3, None, ONLY)),
    "nested folders": (files("a/x/1.png", "a/y/2.png", "b/3.png"), "", expect(3, ["a", "b"], LABEL)),
    "loose and nested images": (files("1.png", "deep/er/2.png"), "", expect(2, None, ONLY)),
    "one flat folder": (files("1.png", "2.png"), "", expect(2, None, ONLY)),
    # Splits.
    "split folders": (SPLITS, "", expect(2, ["a", "b"], LABEL)),
    "split folders, test": (SPLITS, "@test", expect(1, ["a"], LABEL)),
    "split folders, all": (SPLITS, "@all", expect(3, ["a", "b"], LABEL)),
    "split folders, none such": (SPLITS, "@validation", "split: got 'validation', accepted: test, train"),
    "capitals": (files("Train/a/1.png", "VAL/a/2.png"), "@train", expect(1, ["a"], LABEL)),
    "capitals, validation": (files("Train/a/1.png", "VAL/a/2.png"), "@validation", expect(1, ["a"], LABEL)),
    "val for validation": (files("train/a/1.png", "Validation/a/2.png"), "@val", expect(1, ["a"], LABEL)),
    "train and Train": (files("train/1.png", "Train/2.png"), "@TRAIN", "split: got 'TRAIN', accepted: Train, train"),
    "splits without classes": (files("train/1.png", "test/2.png"), "", expect(1, None, ONLY)),
    "splits one folder deeper": (
        files("data/train/a/1.png", "data/test/a/2.png"),
        "",
        r"accepted: \S+/data, classes:",
    ),
    "splits below classes": (
        files("cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"),
        "",
        "hold splits .* the outermost folder is the class",
    ),
    "years": (files("train2017/a/1.png", "val2017/a/2.png"), "@validation", expect(1, ["a"], LABEL)),
    # Names.
    "every suffix": (
        files(*[f"a/{n}.{s}" for n, s in enumerate(IMAGE_EXTENSIONS)]),
        "",
        expect(len(IMAGE_EXTENSIONS)),
    ),
    "suffixes in capitals": (files("1.JPG", "2.Png", "3.TIFF"), "", expect(3)),
    "without a suffix": (
        lambda root: put(root, {"a/001": picture(), "a/v2.final cut": picture(), "README": b"words"}),
        "",
        expect(2),
    ),
    "odd characters": (files("a #1/é ü%20.png", "b&c/x=[1]{2}'\".png", "d\n/y.png"), "", expect(3)),
    "brackets in the folder": (files("set [1]/a/1.png", "set [1]/b/2.png"), "/set [1]", expect(2, ["a", "b"])),
    "braces in the folder": (files("set {0..3}/a/1.png", "set {0..3}/b/2.png"), "/set {0..3}", expect(2, ["a", "b"])),
    "a folder with a suffix": (files("photos.v2/1.png"), "/photos.v2", expect(1)),
    "brackets above Parquet": (parquet("set [1] {2}/x.parquet"), "/set [1] {2}", expect(2, None, ONLY)),
    "a pattern below brackets": (parquet("set [1]/x.parquet"), "/set [1]/*.parquet", expect(2)),
    "a Parquet file with brackets": (parquet("x[1].parquet"), "/x[1].parquet", expect(2)),
    "a local brace pattern": (
        also(parquet("x-0.parquet"), parquet("x-1.parquet")),
        "/x-{0..1}.parquet",
        expect(4),
    ),
    "linked folders": (also(files("real/1.png", "set/a/2.png"), link("real", "set/b")), "/set", expect(2, ["a", "b"])),
    "linked files": (
        also(files("real/1.png", "set/a/2.png"), link("real/1.png", "set/a/3.png", False)),
        "/set",
        expect(2),
    ),
    "a link to a folder above": (also(files("set/a/1.png"), link("set", "set/a/up")), "/set", expect(1, ["a"])),
    "a link that leads nowhere": (also(files("a/1.png"), link("gone.png", "a/2.png", False)), "", expect(1)),
    # What lies next to images.
    "hidden folders": (
        also(files("a/1.png", ".cache/x.png", "__MACOSX/a/._1.png", "a/._1.png"), parquet(".cache/x.parquet")),
        "",
        expect(1, ["a"], LABEL),
    ),
    "a table without images": (
        also(TREE, parquet("scores.parquet", table=lambda: pa.table({"score": [1.0]}))),
        "",
        expect(3, ["car", "plane"], LABEL),
    ),
    "a stray Parquet of images": (also(TREE, parquet("x.parquet")), "", r"1 .parquet files and 3 images, accepted: "),
    "images: next to Parquet": (also(TREE, parquet("x.parquet")), "images:", expect(3, None, ONLY)),
    "images and a tar": (also(TREE, tar("x.tar", {"1.png": picture()})), "", r"1 .tar files and 3 images"),
    "Parquet and tars": (
        also(parquet("x.parquet"), tar("x.tar", {"1.png": picture()})),
        "",
        "1 .parquet files and 1 .tar",
    ),
    "only unreadable images": (files("1.heic", "2.svg"), "", r"no images under \S+ \(1 .heic files, 1 .svg files\)"),
    "unreadable images too": (files("a/1.heic", "a/2.png"), "", expect(1)),
    "an empty folder": (lambda root: None, "", "no images under"),
    "an archive": (files("x.zip"), "/x.zip", "holds .zip files, accepted: .parquet or .tar"),
    "one image": (files("x.png"), "/x.png", "accepted: .parquet or .tar; images: the folder that holds them"),
    # Metadata.
    "metadata.csv": (
        lambda root: put(root, {"1.png": None, "2.png": None, "metadata.csv": "file_name,score\n2.png,5\n1.png,6\n"}),
        "",
        expect(2, None, ["image", "score"], score=[6, 5]),
    ),
    "metadata.jsonl below a split": (
        lambda root: put(
            root,
            {"train/1.png": None, "test/2.png": None}
            | {
                f"{s}/metadata.jsonl": json.dumps({"file_name": f"{n}.png", "text": s})
                for n, s in ((1, "train"), (2, "test"))
            },
        ),
        "@test",
        expect(1, None, ["image", "text"], text=["test"]),
    ),
    "metadata.parquet": (
        also(
            files("x/1.png"), parquet("metadata.parquet", table=lambda: pa.table({"file_name": ["x/1.png"], "n": [4]}))
        ),
        "",
        expect(1, None, ["image", "n"], n=[4]),
    ),
    "metadata above splits": (
        lambda root: put(
            root,
            {"train/1.png": None, "test/2.png": None, "metadata.csv": "file_name,n\ntrain/1.png,1\ntest/2.png,2\n"},
        ),
        "@test",
        expect(1, None, ["image", "n"], n=[2]),
    ),
    "metadata of some images": (
        lambda root: put(root, {"1.png": None, "2.png": None, "metadata.csv": "file_name,n\n1.png,1\n"}),
        "",
        r"metadata.csv of \S+ names 1 of 2 images .*accepted: a row for each, or images:FOLDER",
    ),
    "metadata of missing images": (
        lambda root: put(root, {"1.png": None, "metadata.csv": "file_name,n\n1.png,1\n9.png,1\n"}),
        "",
        "names '9.png', which is no image there",
    ),
    "metadata of something else": (
        lambda root: put(root, {"a/1.png": None, "b/2.png": None, "metadata.csv": "key,value\nx,1\n"}),
        "",
        expect(2, ["a", "b"], LABEL),
    ),
    "metadata with masks": (
        lambda root: put(
            root,
            {"1.png": None, "m/1.png": label_map(), "metadata.csv": "file_name,mask_file_name\n1.png,m/1.png\n"},
        ),
        "",
        expect(1, None, MASK),
    ),
    # Masks.
    "images and masks": (
        also(files("images/1.png", "images/2.png"), masks("masks/1.png", "masks/2.png")),
        "",
        expect(2, None, MASK),
    ),
    "images/train and masks/train": (
        also(files("images/train/1.png", "images/val/2.png"), masks("masks/train/1.png", "masks/val/2.png")),
        "@val",
        expect(1, None, MASK),
    ),
    "train/images and train/masks": (
        also(files("train/images/1.jpg", "test/images/2.jpg"), masks("train/masks/1.png", "test/masks/2.png")),
        "@test",
        expect(1, None, MASK),
    ),
    "ADE20k": (
        also(
            files("images/training/1.jpg", "images/validation/2.jpg"),
            masks("annotations/training/1.png", "annotations/validation/2.png"),
        ),
        "@train",
        expect(1, None, MASK),
    ),
    "Cityscapes": (
        also(
            files("leftImg8bit/train/aachen/a_0_leftImg8bit.png", "leftImg8bit/val/ulm/u_0_leftImg8bit.png"),
            masks(*[f"gtFine/train/aachen/a_0_gtFine_{k}.png" for k in ("labelIds", "instanceIds", "color")]),
            masks("gtFine/val/ulm/u_0_gtFine_labelIds.png"),
        ),
        "@train",
        expect(1, None, MASK, mask="labelIds"),
    ),
    "Pascal VOC masks": (
        also(
            files("JPEGImages/1.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg"),
            masks("SegmentationClass/1.png", "SegmentationClass/2.png", "SegmentationObject/1.png"),
            lambda root: put(
                root, {"ImageSets/Segmentation/train.txt": "1\n", "ImageSets/Segmentation/val.txt": "2\n"}
            ),
        ),
        "@val",
        expect(1, None, MASK),
    ),
    "train next to train_labels": (
        also(
            files("train/1.png", "test/2.png"),
            masks("train_labels/1_L.png", "train_labels/1.png", "test_labels/2.png"),
        ),
        "@train",
        expect(1, None, MASK),
    ),
    "x.jpg and x_mask.png": (
        also(files("1.jpg", "2.jpg"), masks("1_mask.png", "2_mask.png")),
        "",
        expect(2, None, MASK),
    ),
    "an image without its mask": (
        also(files("images/1.png", "images/2.png", "images/3.png"), masks("masks/1.png", "masks/2.png")),
        "",
        expect(2, None, MASK),
    ),
    "masks of other names": (
        also(files("images/a.png", "images/b.png"), masks("masks/x.png", "masks/y.png")),
        "",
        "0 have the same names, accepted: images:",
    ),
    "masks, image alone": (also(files("images/1.png"), masks("masks/1.png")), "images:", expect(1, None, ONLY)),
    "masks one folder deeper": (
        also(files("set/images/1.png"), masks("set/masks/1.png")),
        "",
        r"accepted: \S+/set, classes:",
    ),
    "images next to depth": (
        also(files("images/1.png"), masks("depth/1.png")),
        "",
        "next to depth, of which no column is made",
    ),
    "class folders called like masks": (files("mask/1.png", "no_mask/2.png"), "", expect(2, ["mask", "no_mask"])),
    "two images for a mask": (
        also(files("images/1.jpg", "images/1.png"), masks("masks/1.png")),
        "",
        expect(1, None, MASK, path="1.jpg"),
    ),
    # Boxes.
    "COCO": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg"]),
                "annotations/instances_train2017.json": coco(["1.jpg", "2.jpg"]),
                "annotations/instances_val2017.json": coco(["3.jpg"]),
                "annotations/captions_val2017.json": coco(["3.jpg"]),
            },
        ),
        "",
        expect(2, ["cat", "dog"], OBJECTS, objects={"bbox": [[1, 2, 3, 4]], "category": [1]}),
    ),
    "COCO, images of the same names": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["images/train/1.jpg", "images/val/1.jpg"]),
                "annotations/instances_train.json": coco(["1.jpg"]),
                "annotations/instances_val.json": coco(["1.jpg"]),
            },
        ),
        "@val",
        expect(1, ["cat", "dog"], OBJECTS, path="val/1.jpg"),
    ),
    "COCO next to its images": (
        lambda root: put(
            root,
            {f"{s}/{n}.jpg": None for s, n in (("train", 1), ("valid", 2))}
            | {f"{s}/_annotations.coco.json": coco([f"{n}.jpg"]) for s, n in (("train", 1), ("valid", 2))},
        ),
        "@validation",
        expect(1, ["cat", "dog"], OBJECTS),
    ),
    "COCO of other images": (
        lambda root: put(root, {"1.jpg": None, "instances_train.json": coco(["9.jpg"])}),
        "",
        "none of the 1 images that instances_train.json names",
    ),
    "YOLO": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["images/train/1.jpg", "images/val/2.jpg"]),
                "labels/train/1.txt": "1 0.5 0.5 0.25 0.5\n",
                "data.yaml": "names: [cat, dog]\n",
            },
        ),
        "",
        expect(1, ["cat", "dog"], OBJECTS, objects={"bbox": [[3, 2, 2, 4]], "category": [1]}),
    ),
    "YOLO, splits above": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["train/images/1.jpg", "valid/images/2.jpg"]),
                "train/labels/1.txt": "0 0.5 0.5 1 1\n",
                "valid/labels/2.txt": "0 0.25 0.25 0.75 0.25 0.75 0.5\n",
                "data.yaml": "names: {0: cat}\n",
            },
        ),
        "@val",
        expect(1, ["cat"], OBJECTS, objects={"bbox": [[2, 2, 4, 2]], "category": [0]}),
    ),
    "YOLO, a broken line": (
        lambda root: put(root, {"images/1.jpg": None, "labels/1.txt": "cat 1 2\n"}),
        "",
        "line 1 of .* is 'cat 1 2', accepted: class x y width height",
    ),
    "YOLO, too few names": (
        lambda root: put(root, {"images/1.jpg": None, "labels/1.txt": "3 .5 .5 1 1\n", "data.yaml": "names: [cat]\n"}),
        "",
        "have class 3, accepted: 0 to 0",
    ),
    "Pascal VOC boxes": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["JPEGImages/1.jpg", "JPEGImages/2.jpg"]),
                "Annotations/1.xml": voc(),
                "Annotations/2.xml": voc(name="ape"),
                "ImageSets/Main/train.txt": "1\n",
                "ImageSets/Main/val.txt": "2\n",
            },
        ),
        "",
        expect(1, ["ape", "cat"], OBJECTS, objects={"bbox": [[1, 2, 4, 6]], "category": [1]}),
    ),
    "VOC files that count from 0": (
        lambda root: put(root, {"images/1.jpg": None, "annotations/1.xml": voc(0, 3, 5, 8)}),
        "",
        expect(1, ["cat"], OBJECTS, objects={"bbox": [[0, 3, 5, 5]], "category": [0]}),
    ),
    "VOC files next to their images": (
        lambda root: put(root, {"train/1.jpg": None, "train/1.xml": voc(), "test/2.jpg": None, "test/2.xml": voc()}),
        "@test",
        expect(1, ["cat"], OBJECTS),
    ),
    "masks and boxes": (
        also(
            files("JPEGImages/1.jpg"),
            masks("SegmentationClass/1.png"),
            lambda root: put(root, {"Annotations/1.xml": voc()}),
        ),
        "",
        "holds masks and boxes, accepted: masks:.*, boxes:.*, images:",
    ),
    "boxes: by request": (
        also(
            files("JPEGImages/1.jpg"),
            masks("SegmentationClass/1.png"),
            lambda root: put(root, {"Annotations/1.xml": voc()}),
        ),
        "boxes:",
        expect(1, ["cat"], OBJECTS),
    ),
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
    "a pattern of another split": (parquet("test-0.parquet"), "/test-*.parquet", expect(2)),
    "a folder of another split": (parquet("test-0.parquet"), "", "split: got 'train', accepted: test"),
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


def call_of(root, call):
    """Return the source and the split that a row of the table means: READING:, /below, @split or =source."""
    call, _, split = call.partition("@")
    if call.startswith("="):
        return call[1:], split or "train"
    reading, colon, below = call.rpartition(":")
    return f"{reading}{colon}{root}{below}", split or "train"


def classes_of(rows):
    objects = rows.features.get("objects")
    if objects is not None:
        return objects["category"].feature.names
    return rows.features["label"].names if "label" in rows.features else None


@pytest.mark.parametrize("name", IN_ORDER)
def test_layout(tmp_path, name, capfd):
    make, call, expected = IN_ORDER[name]
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    source, split = call_of(root, call)
    if isinstance(expected, str):
        with pytest.raises(Refused, match=expected) as raised:
            load_source(source, split)
        message = str(raised.value)
        assert "\n" not in message and message.startswith(("data: ", "split: ", "image_column: "))
        return
    rows = load_source(source, split)
    found = list(rows)
    assert len(found) == expected["rows"]
    assert expected["classes"] is None or classes_of(rows) == expected["classes"]
    assert expected["columns"] is None or list(rows.column_names) == expected["columns"]
    for column in set(expected) & {"score", "n", "text", "cls", "txt"}:
        assert [row[column] for row in found] == expected[column]
    if "objects" in expected:
        assert {key: np.array(value).tolist() for key, value in found[0]["objects"].items()} == expected["objects"]
    if "mask" in expected:
        assert expected["mask"] in found[0]["mask"]["path"]
    if "path" in expected:
        assert found[0]["image"]["path"].endswith(expected["path"])


def test_the_table_is_long_enough():
    assert len(IN_ORDER) >= 60


# Training on them


@pytest.mark.parametrize("kind", ["bytes", "tars", "folder", "saved"])
def test_sources_of_others_resume_exactly(tmp_path, kind):
    for shard in range(2):
        of_shard = [picture(10 * shard + index) for index in range(5)]
        if kind == "bytes":
            pq.write_table(pa.table({"scan": of_shard, "n": range(5)}), tmp_path / f"{shard}.parquet")
        elif kind == "tars":
            suffixes = ["png", "jpg"] * 3
            tar(f"{shard}.tar", {f"{i}.{suffixes[i]}": data for i, data in enumerate(of_shard)})(tmp_path)
        elif kind == "folder":
            put(tmp_path, {f"{shard}/{i}.png": data for i, data in enumerate(of_shard)})
    if kind == "saved":
        saved("dict")(tmp_path)
    rows = load_source(str(tmp_path), columns=[])

    def read(stream, count):
        return [next(iter(row.values())) for row in itertools.islice(stream, count)]

    whole = read(RowStream(rows, 4, 0), 25)
    assert set(whole[0]) == {"bytes", "path"}
    for stop in (0, 3, 4, 11, 17):
        stream = RowStream(rows, 4, 0)
        head = read(stream, stop)
        again = RowStream(rows, 4, 0)
        again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert head + read(again, 25 - stop) == whole


def test_a_folder_gives_the_same_rows_until_it_changes(tmp_path):
    TREE(tmp_path)
    first, second = (load_source(str(tmp_path), split)._fingerprint for split in ("train", "test"))
    assert first == second
    (tmp_path / "car/1.png").write_bytes(picture(77))
    assert load_source(str(tmp_path))._fingerprint != first


def test_labels_in_the_json_of_tars_are_columns(tmp_path):
    tar(
        "x.tar",
        {f"{n}{end}": data for n in (1, 2) for end, data in ((".png", picture(n)), (".json", f'{{"y": {n}}}'))},
    )(tmp_path)
    assert load_source(str(tmp_path), streaming=False)["y"] == [1, 2]


def test_boxes_are_read_only_where_they_are_wanted(tmp_path):
    put(tmp_path, {"images/1.jpg": None, "labels/1.txt": "no boxes"})
    assert load_source(str(tmp_path), columns=[]).column_names == ["image"]


def test_notes_are_said_once(tmp_path, capfd):
    files("car/1.png", "plane/2.png", "train/3.png")(tmp_path)
    for _ in range(2):
        load_source(str(tmp_path))
    captured = capfd.readouterr()
    assert captured.err.count("train is taken for a class, as car, plane are") == 1 and not captured.out


def test_the_suffixes_are_those_that_the_decoder_opens():
    Image.init()
    known = Image.registered_extensions()
    assert all(f".{suffix}" in known for suffix in IMAGE_EXTENSIONS)
