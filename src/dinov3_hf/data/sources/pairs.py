"""Label maps and box files next to images: which file belongs to which image, by the names of folders and files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .listing import suffix_of
from .split_names import is_split, split_of_folders


IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos")
MASK_FOLDERS = (
    *("masks", "mask", "annotations", "annotation", "labels", "label", "segmentationclass", "segmentation"),
    *("segmentations", "gtfine", "groundtruth", "ground_truth", "gt", "targets", "annots"),
)
# Maps of which no column is made: depths, single objects, motion.
OTHER_FOLDERS = ("depth", "depths", "disparity", "normals", "flow", "segmentationobject", "instances")
# train next to train_labels, trainannot, train_masks.
OF_SPLIT = re.compile(r"^(train|val|valid|validation|test)[-_]?(labels|label|masks|mask|annotations|annots?)$", re.I)
MASK_ENDINGS = re.compile(
    r"([-_](mask|masks|gt|label|labels|seg|segmentation)|_gtFine_labelIds|_leftImg8bit)$", re.IGNORECASE
)
# x_mask.png next to x.jpg.
ENDING = re.compile(r"[-_](mask|masks|seg|segmentation)\.[A-Za-z0-9]+$", re.IGNORECASE)
# Cityscapes has four further maps of each image.
OTHER_MAPS = re.compile(r"_gtFine_(color|instanceIds|labelTrainIds|instanceTrainIds)$")


@dataclass
class Pairs:
    """Images, each under the key (folders, stem) that its mask, boxes or text share; the rest is other files."""

    images: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    # Maps of which no column is made, such as depths, and images on no side.
    maps: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def split(self, key: str) -> str | None:
        """Return the split that the folders of a key say."""
        return split_of_folders(key)


def side_of(file: str) -> tuple[str, str]:
    """Return which side a file is on ("image", "mask", "map" or "") and the key it shares with the other side."""
    path = PurePosixPath(file)
    folders, side = list(path.parts[:-1]), ""
    for place, folder in enumerate(folders[:2]):
        match = OF_SPLIT.match(folder)
        name = folder.lower()
        kinds = {"image": IMAGE_FOLDERS, "mask": MASK_FOLDERS, "map": OTHER_FOLDERS}
        role = "mask" if match else next((kind for kind, names in kinds.items() if name in names), "")
        # Above a side there is nothing but a split.
        if role and all(is_split(above) for above in folders[:place]):
            side = role
            folders[place : place + 1] = [match.group(1).lower()] if match else []
            break
    stem = MASK_ENDINGS.sub("", path.stem) if side in ("image", "mask") else path.stem
    return side, "/".join((*folders, stem))


def find_pairs(files: Sequence[str], images: Sequence[str]) -> Pairs | None:
    """Return what belongs together, or None if no folder or name says that some files describe others."""
    pairs, pictures = Pairs(), set(images)
    plain = {}
    # Most folders are of classes, and may hold a million images.
    if not any(side_of(f"{folder}/x")[0] for folder in {"/".join(file.split("/")[:-1][:2]) for file in files}):
        return _in_one_folder([file for file in images if ENDING.search(file)], images) or _with_xml(files, images)
    for file in files:
        side, key = side_of(file)
        is_text = suffix_of(file) in ("txt", "xml")
        if side == "mask" and is_text:
            pairs.texts[key] = file
        elif file not in pictures:
            continue
        elif side == "mask":
            if not OTHER_MAPS.search(PurePosixPath(file).stem):
                pairs.masks[key] = file
        elif side == "image":
            if pairs.images.setdefault(key, file) != file:
                pairs.others.append(file)
        elif side == "map":
            pairs.maps.append(file)
        else:
            plain["/".join((*_lower_split(PurePosixPath(file).parts[:-1]), PurePosixPath(file).stem))] = file
    if pairs.masks and not pairs.images and any(OF_SPLIT.match(file.split("/")[0]) for file in pairs.masks.values()):
        pairs.images = plain
    else:
        pairs.others += plain.values()
    return pairs if pairs.images and (pairs.masks or pairs.texts or pairs.maps) else None


def _lower_split(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(folder.lower() if is_split(folder) else folder for folder in folders)


def _in_one_folder(ending: Sequence[str], images: Sequence[str]) -> Pairs | None:
    """Return pairs of x.jpg and x_mask.png in one folder, where each file that ends so has its image."""
    if not ending:
        return None
    masks = {ENDING.sub("", file): file for file in ending}
    keys = {str(PurePosixPath(file).with_suffix("")): file for file in images if not ENDING.search(file)}
    return Pairs(keys, masks) if set(masks) <= set(keys) else None


def by_stem(pairs: Pairs) -> Pairs:
    """Return pairs told by split and stem alone; as they were if two images or two masks of a split share a stem."""
    sides = []
    for side in (pairs.images, pairs.masks):
        short = {"/".join(filter(None, (split_of_folders(key), PurePosixPath(key).name))): key for key in side}
        if len(short) < len(side):
            return pairs
        sides.append({key: side[long] for key, long in short.items()})
    return Pairs(sides[0], sides[1], pairs.texts, pairs.maps, pairs.others)


def _with_xml(files: Sequence[str], images: Sequence[str]) -> Pairs | None:
    """Return pairs of x.jpg and x.xml in one folder."""
    texts = {file.rpartition(".")[0]: file for file in files if suffix_of(file) == "xml"}
    keys = {str(PurePosixPath(file).with_suffix("")): file for file in images} if texts else {}
    return Pairs(keys, texts=texts) if set(texts) & set(keys) else None


def voc_lists(root: Path, files: Sequence[str], kind: str) -> dict[str, list[str]]:
    """Return the stems of each split in `ImageSets/KIND/*.txt`, as Pascal VOC has them."""
    lists = [file for file in files if re.fullmatch(rf"ImageSets/{kind}/(train|val|test)\.txt", file)]
    return {
        PurePosixPath(file).stem: [line.split()[0] for line in (root / file).read_text().splitlines() if line.strip()]
        for file in lists
    }
