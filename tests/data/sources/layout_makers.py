"""Layouts of data on disk, as people and other tools write them."""

import functools
import io
import json
import os
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dinov3_hf.data.sources.listing import IMAGE_EXTENSIONS, suffix_of


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


def masks(*names):
    return lambda root: put(root, {name: picture(1, "L") for name in names})


def expect(rows, classes=None, columns=None, **values):
    return {"rows": rows, "classes": classes, "columns": columns, **values}


ONLY = ["image"]
LABEL = ["image", "label"]
MASK = ["image", "mask"]
OBJECTS = ["image", "objects"]
