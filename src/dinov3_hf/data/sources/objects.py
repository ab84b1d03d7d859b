"""Boxes of others as a column `objects`: COCO JSON, YOLO text files, Pascal VOC XML."""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...errors import Refused


# The boxes [x, y, width, height] in pixels of one image, and their classes.
Objects = dict[str, list]
# An annotation file of COCO begins with one of these keys.
COCO_KEYS = ("images", "annotations", "categories")


def objects_feature(names: Sequence[str]) -> Any:
    """Return the feature of a column of objects with these class names."""
    from datasets import ClassLabel, List, Value

    return {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=list(names)))}


def is_coco(path: Path) -> bool:
    """Say whether a JSON file holds boxes as COCO does, from its first and last kilobytes."""
    with open(path, "rb") as file:
        head = file.read(65536)
        file.seek(max(0, path.stat().st_size - 65536))
        text = (head + file.read()).decode(errors="ignore")
    return all(f'"{key}"' in text for key in ("images", "annotations")) and (
        '"bbox"' in text or '"categories"' in text
    )


def read_coco(path: Path) -> tuple[dict[str, Objects], list[str]]:
    """Return the objects of each file name, and the class names in the order of their numbers; crowds are skipped."""
    return _read_coco(path, path.stat().st_mtime_ns)


@functools.lru_cache(4)
def _read_coco(path: Path, changed: int) -> tuple[dict[str, Objects], list[str]]:
    """Read a file once as long as it does not change: each split and the account ask for it."""
    try:
        content = json.loads(path.read_text())
        categories = sorted(content["categories"], key=lambda category: category["id"])
        number = {category["id"]: index for index, category in enumerate(categories)}
        names = {image["id"]: image["file_name"] for image in content["images"]}
        objects: dict[str, Objects] = {name: {"bbox": [], "category": []} for name in names.values()}
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                objects[names[item["image_id"]]]["bbox"].append([float(value) for value in item["bbox"]])
                objects[names[item["image_id"]]]["category"].append(number[item["category_id"]])
    except (KeyError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Refused(f"data: {str(path)!r} is no COCO file of boxes: {reason}") from error
    return objects, [str(category["name"]) for category in categories]


def yolo_names(root: Path, files: Sequence[str]) -> list[str] | None:
    """Return the class names of data.yaml or classes.txt, or None if there are none."""
    import yaml

    for file in files:
        if re.fullmatch(r"[^/]*\.ya?ml", file):
            content = yaml.safe_load((root / file).read_text())
            names = content.get("names") if isinstance(content, dict) else None
            if names:
                by_number = names if isinstance(names, dict) else dict(enumerate(names))
                return [str(by_number.get(index, index)) for index in range(max(by_number) + 1)]
        elif file.rpartition("/")[2] == "classes.txt":
            return (root / file).read_text().split("\n")[:-1] or None
    return None


def read_yolo(path: Path, size: tuple[int, int]) -> Objects:
    """Read the lines `class x y w h` (centre and sides as fractions), or polygons, of an image of (height, width)."""
    height, width = size
    objects: Objects = {"bbox": [], "category": []}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *values = (float(value) for value in line.split())
            if len(values) == 4:
                x, y, w, h = values
                box = [x - w / 2, y - h / 2, w, h]
            elif len(values) >= 6 and len(values) % 2 == 0:
                xs, ys = values[::2], values[1::2]
                box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            else:
                raise ValueError
        except ValueError as error:
            accepted = "class x y width height as fractions, or class and a polygon"
            raise Refused(f"data: line {number} of {str(path)!r} is {line[:60]!r}, accepted: {accepted}") from error
        objects["bbox"].append([box[0] * width, box[1] * height, box[2] * width, box[3] * height])
        objects["category"].append(int(kind))
    return objects


def read_voc(path: Path) -> list[tuple[str, list[float]]]:
    """Return the class name and box (xmin, ymin, xmax, ymax as written) of each object of an XML file."""
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [
            (str(item.findtext("name")), [float(str(item.findtext(f"bndbox/{corner}"))) for corner in corners])
            for item in objects
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise Refused(f"data: {str(path)!r} is no Pascal VOC file of boxes: {error}") from error


def voc_objects(of_images: Sequence[list[tuple[str, list[float]]]]) -> tuple[list[Objects], list[str], bool]:
    """Return the objects of each image, the sorted class names, and whether pixels were counted from 1.

    VOC counts from 1 and includes the last pixel; files with a 0 among their corners count from 0.
    """
    names = sorted({name for objects in of_images for name, _ in objects})
    from_one = not any(0 in box[:2] for objects in of_images for _, box in objects)
    shift = 1.0 if from_one else 0.0
    rows: list[Objects] = []
    for objects in of_images:
        boxes = [[x0 - shift, y0 - shift, x1 - x0 + shift, y1 - y0 + shift] for _, (x0, y0, x1, y1) in objects]
        rows.append({"bbox": boxes, "category": [names.index(name) for name, _ in objects]})
    return rows, names, from_one
