"""Folders of images: how each is made, what is asked of it, and what it gives."""

import json

import pyarrow as pa

from dinov3_hf.data.sources.listing import IMAGE_EXTENSIONS

from .layout_makers import (
    LABEL,
    MASK,
    ONLY,
    SPLITS,
    TREE,
    also,
    expect,
    files,
    label_map,
    link,
    parquet,
    picture,
    put,
    tar,
)


FOLDERS = {
    # Folders of classes.
    "class folders": (TREE, "", expect(3, ["car", "plane"], LABEL)),
    "class folders, any split": (TREE, "@test", expect(3, ["car", "plane"], LABEL)),
    "one class called like a split": (
        files("car/1.png", "plane/2.png", "train/3.png"),
        "",
        expect(3, ["car", "plane", "train"], LABEL, note="train is taken for a class, as car, plane are"),
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
    "splits two folders deeper": (
        files("Data/CLS-LOC/train/a/1.png", "Data/CLS-LOC/val/2.png"),
        "",
        r"'Data/CLS-LOC' of \S+ holds splits \(train, val\), accepted: \S+/Data/CLS-LOC",
    ),
    "classes one folder deeper": (
        files("images/cat/1.png", "images/dog/2.png"),
        "",
        r"lie in 'images', of which the folders may be classes \(cat, dog\), accepted: \S+/images, classes:",
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
    "unreadable images too": (files("a/1.heic", "a/2.png"), "", expect(1, note="skipped: 1 .heic files")),
    "an empty folder": (lambda root: None, "", "no images under"),
    "an archive": (files("x.zip"), "/x.zip", "holds .zip files, accepted: .parquet or .tar"),
    "one image": (files("x.png"), "/x.png", "accepted: .parquet or .tar; images: the folder that holds them"),
    "labels in a table of another name": (
        lambda root: put(root, {"train/1.jpg": None, "train.csv": "id,label\n1,a\n"}),
        "",
        expect(1, None, ONLY, note=r"train.csv is not read \(metadata.csv with a column file_name would be\)"),
    ),
    "texts with the names of images": (
        lambda root: put(root, {"1.jpg": None, "1.txt": "a cat"}),
        "",
        expect(1, None, ONLY, note="1 files with the names of images are not read"),
    ),
    "a folder called images and another": (
        files("images/1.png", "screenshots/2.png"),
        "",
        expect(2, ["images", "screenshots"], LABEL),
    ),
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
}
