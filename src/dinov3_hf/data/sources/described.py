"""Folders in which files describe images: masks, boxes in JSON, text or XML."""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import Refused
from .listing import Listing, suffix_of
from .objects import (
    Objects,
    is_coco,
    objects_feature,
    read_coco,
    read_voc,
    read_yolo,
    voc_objects,
    yolo_names,
)
from .pairs import IMAGE_FOLDERS, MASK_FOLDERS, OTHER_FOLDERS, Pairs, by_stem, find_pairs, voc_lists
from .readings import Layout
from .split_names import is_split, split_of_file, split_of_folders


MAX_TABLES = 64


def described_images(listing: Listing, images: list[str], reading: str | None, source: str) -> Layout | None:
    """Return the layout of a folder in which files describe images, or None if there are none such."""
    tables = listing.named("json")
    # Thousands of JSON files are one an image, which is not how COCO has it.
    tables = tables if len(tables) <= MAX_TABLES else [file for file in tables if "instances" in file]
    coco = [file for file in tables if is_coco(listing.root / file)]
    chosen = [file for file in coco if "instances" in PurePosixPath(file).name] or [
        file for file in coco if not PurePosixPath(file).name.startswith(("captions", "person_keypoints"))
    ]
    pairs = find_pairs(listing.files, images)
    _check_wrapped(images, source, reading)
    if pairs is None and reading is None:
        _check_deeper(images, source)
    if pairs is None and not chosen:
        return None
    ways = [
        way for way, is_there in (("masks", pairs and pairs.masks), ("boxes", chosen or _texts(pairs))) if is_there
    ]
    if reading in ("masks", "boxes") and reading not in ways:
        return None
    if reading is None and len(ways) > 1:
        accepted = ", ".join(f"{way}:{source}" for way in (*ways, "images"))
        raise Refused(f"data: {source!r} holds masks and boxes, accepted: {accepted}")
    if reading == "images" and pairs is not None and pairs.images:
        return _alone(listing, pairs)
    if not ways:
        assert pairs is not None
        held = sorted({PurePosixPath(file).parts[-2] for file in (*pairs.maps, *pairs.texts.values())})
        raise Refused(
            f"data: {source!r} holds images next to {', '.join(held[:4])}, of which no column is made, accepted: "
            f"images:{source}, classes:{source} (each folder is a class)"
        )
    if (reading or ways[0]) == "masks":
        assert pairs is not None
        return _with_masks(listing, pairs, source)
    if chosen:
        return _coco_layout(listing, images, chosen, reading, source)
    assert pairs is not None
    return _with_texts(listing, pairs, source)


def _texts(pairs: Pairs | None) -> dict[str, str]:
    """Return the files of boxes that share their name with an image."""
    return {key: file for key, file in pairs.texts.items() if key in pairs.images} if pairs else {}


def _check_wrapped(images: Sequence[str], source: str, reading: str | None) -> None:
    """Refuse a folder that holds nothing but one folder of images and masks, or of splits of them."""
    tops = {file.split("/")[0] if "/" in file else "" for file in images}
    second = {file.split("/")[1].lower() for file in images if file.count("/") > 1}
    sides = [any(name in names for name in second) for names in (IMAGE_FOLDERS, (*MASK_FOLDERS, *OTHER_FOLDERS))]
    if len(tops) == 1 and all(sides) and reading != "classes":
        top = tops.pop()
        if not is_split(top) and top.lower() not in (*IMAGE_FOLDERS, *MASK_FOLDERS):
            raise Refused(
                f"data: {source!r} holds one folder of images and what belongs to them, accepted: {source}/{top}, "
                f"classes:{source}"
            )


def _check_deeper(images: Sequence[str], source: str) -> None:
    """Refuse folders of images next to folders of masks that lie deeper than they are looked for."""
    folders = {file.rpartition("/")[0] for file in images}
    names = {re.sub("[-_](png|jpg|tif)$", "", name) for folder in folders for name in folder.lower().split("/")}
    sides = [sorted(names & set(side)) for side in (IMAGE_FOLDERS, (*MASK_FOLDERS, *OTHER_FOLDERS))]
    if all(sides):
        raise Refused(
            f"data: {source!r} holds folders called {sides[0][0]} and {sides[1][0]} deeper than masks are looked for, "
            f"accepted: the folder that holds both, classes:{source}"
        )


def _by_split(keys: dict[str, str], lists: dict[str, list[str]]) -> tuple[dict[str | None, list[str]], int]:
    """Return the images of each split, told by lists, else by the folders of their keys; and how many are in none."""
    splits: dict[str | None, list[str]] = {}
    if lists:
        splits = {name: [keys[stem] for stem in stems if stem in keys] for name, stems in lists.items()}
        return splits, len(set(keys.values()) - {file for files in splits.values() for file in files})
    for key, file in sorted(keys.items(), key=lambda item: item[1]):
        splits.setdefault(split_of_folders(key), []).append(file)
    none = splits.pop(None, []) if len(splits) > 1 else []
    return splits, len(none)


def _alone(listing: Listing, pairs: Pairs) -> Layout:
    splits, _ = _by_split(pairs.images, {})
    return Layout("images", listing.root, "images", splits)


def _with_masks(listing: Listing, pairs: Pairs, source: str) -> Layout:
    both = {key: file for key, file in pairs.images.items() if key in pairs.masks}
    if not both:
        # Folders may differ between the sides where the names alone are enough.
        pairs = by_stem(pairs)
        both = {key: file for key, file in pairs.images.items() if key in pairs.masks}
    lists = voc_lists(listing.root, listing.files, "Segmentation")
    if len(both) * 2 < min(len(pairs.images), len(pairs.masks)) and not lists or not both:
        raise Refused(
            f"data: {source!r} holds {len(pairs.images)} images and {len(pairs.masks)} masks, of which {len(both)} "
            f"have the same names, accepted: images:{source}, classes:{source} (each folder is a class)"
        )
    splits, without = _by_split(both, lists)
    notes = []
    if len(both) < len(pairs.images):
        count = len(pairs.images) - len(both)
        notes.append(f"{count} images without a mask of the same name are skipped (images:{source} reads them)")
    if len(both) < len(pairs.masks):
        notes.append(f"{len(pairs.masks) - len(both)} masks without an image of the same name are skipped")
    if without:
        notes.append(f"{without} images that are in no split are skipped")
    others = [*pairs.others, *pairs.maps]
    if others:
        notes.append(f"{len(others)} other images are skipped ({others[0]})")
    masks = {file: pairs.masks[key] for key, file in both.items()}
    used = [file for file in listing.files if file.startswith("ImageSets/Segmentation/")]
    return Layout("images with masks", listing.root, "images", splits, masks=masks, notes=notes, used=used)


def _with_texts(listing: Listing, pairs: Pairs, source: str) -> Layout:
    """Return the layout of YOLO text files or VOC XML files next to images."""
    root, texts = listing.root, _texts(pairs)
    is_voc = suffix_of(next(iter(texts.values()))) == "xml"
    splits, without = _by_split(pairs.images, voc_lists(root, listing.files, "Main") if is_voc else {})
    of_image = {pairs.images[key]: file for key, file in texts.items()}
    notes = [f"{without} images that are in no split are skipped"] if without else []
    bare = len(pairs.images) - len(texts)
    if bare:
        notes.append(f"{bare} images without a file of boxes have no objects")
    if is_voc:
        read: Any = partial(_read_voc_files, root, of_image, sorted(of_image.values()))
        kind = "images with boxes in Pascal VOC files"
    else:
        read = partial(_read_yolo_files, root, of_image, yolo_names(root, listing.files))
        kind = "images with boxes in YOLO files"
    names_of = [file for file in listing.files if file.endswith((".yaml", ".yml", "classes.txt"))]
    lists = [file for file in listing.files if file.startswith("ImageSets/Main/")]
    used = [*pairs.texts.values(), *(lists if is_voc else names_of)]
    return Layout(kind, root, "images", splits, read_objects=read, notes=notes, used=used)


def _read_yolo_files(root: Path, texts: dict[str, str], names: list[str] | None, files: list[str]) -> tuple[list, Any]:
    from ..pixels import BadImage, read_size

    values: list[Objects] = []
    for file in files:
        try:
            size = read_size(str(root / file))
            values.append(read_yolo(root / texts[file], size) if file in texts else {"bbox": [], "category": []})
        except BadImage:
            values.append({"bbox": [], "category": []})
    largest = max((number for value in values for number in value["category"]), default=-1)
    names = names or [str(number) for number in range(largest + 1)]
    if largest >= len(names):
        raise Refused(f"data: the boxes of {str(root)!r} have class {largest}, accepted: 0 to {len(names) - 1}")
    return values, objects_feature(names)


def _read_voc_files(root: Path, texts: dict[str, str], everything: list[str], files: list[str]) -> tuple[list, Any]:
    # Classes and the first pixel's number are those of all files, so that every split has the same.
    read = {text: read_voc(root / text) for text in everything}
    rows, names, _ = voc_objects(list(read.values()))
    of_text = dict(zip(read, rows, strict=True))
    empty: Objects = {"bbox": [], "category": []}
    return [of_text[texts[file]] if file in texts else empty for file in files], objects_feature(names)


def _coco_layout(listing: Listing, images: list[str], files: list[str], reading: str | None, source: str) -> Layout:
    """Return the layout of COCO files of boxes, each of the split that its name or folder says."""
    splits: dict[str | None, list[str]] = {}
    objects: dict[str, Objects] = {}
    names: list[str] = []
    notes: list[str] = []
    present = set(images)
    for file in files:
        named, classes = read_coco(listing.root / file)
        split = split_of_file(PurePosixPath(file).name) or split_of_folders(file)
        if split in splits or (names and names != classes):
            accepted = "one file of boxes a split, all with the same categories"
            raise Refused(f"data: {source!r} holds several COCO files ({', '.join(files[:4])}), accepted: {accepted}")
        names = classes
        of_name = _places(named, present, file)
        splits[split] = sorted(of_name.values())
        objects |= {of_name[name]: value for name, value in named.items() if name in of_name}
        if len(of_name) < len(named):
            if not of_name:
                raise Refused(f"data: none of the {len(named)} images that {file} names is below {source!r}")
            notes.append(f"{len(named) - len(of_name)} of {len(named)} images that {file} names are not there")
    if len(objects) < len(present):
        notes.append(f"{len(present) - len(objects)} images that no file of boxes names are skipped")
    if None in splits and len(splits) > 1:
        raise Refused(f"data: of the COCO files of {source!r} some name no split ({', '.join(files[:4])})")

    def read(chosen: list[str]) -> tuple[list, Any]:
        return [objects[image] for image in chosen], objects_feature(names)

    kind = "images with boxes in COCO files"
    return Layout(kind, listing.root, "images", splits, read_objects=read, notes=notes, used=files)


def _places(names: "Sequence[str] | dict[str, Objects]", present: set[str], file: str) -> dict[str, str]:
    """Return where each image that a COCO file names lies: below one folder, the same for all."""
    folder = PurePosixPath(file).parent
    folders = {str(PurePosixPath(image).parent) for image in present}
    # The file's own split comes first: two splits may have images of the same names.
    split = split_of_file(PurePosixPath(file).name)
    candidates = [str(folder)]
    candidates += sorted(folders, key=lambda name: (split is None or split_of_file(name) != split, name))
    candidates += [".", str(folder.parent), "images"]
    best: dict[str, str] = {}
    for candidate in candidates:
        named = {
            name: place for name in names if (place := os.path.normpath(PurePosixPath(candidate) / name)) in present
        }
        if len(named) == len(names):
            return named
        best = named if len(named) > len(best) else best
    return best
