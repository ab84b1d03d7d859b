"""The bundled data set: rendered scenes as a `datasets.Dataset` or a stream, nothing to download."""

import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .scene_rendering import FRAMES, SCENE_CLASSES, SPLITS, SUBSETS, Scene, check_arguments, render_scene


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

SCENES_VERSION = "2"
DEPTH_UNIT = 1000  # stored units a metre
NUM_SHARDS = 64

__all__ = [
    "SCENES_VERSION",
    "SCENE_CLASSES",
    "SPLITS",
    "SUBSETS",
    "Scene",
    "load_scenes",
    "render_scene",
    "scenes_checksum",
]


def encode(array: np.ndarray, kind: str) -> dict:
    """Encode an image as uncompressed BMP (fast) or a label map as PNG, in `datasets`' undecoded form."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    return {"bytes": buffer.getvalue(), "path": None}


def scene_row(index: int, split: str, subset: str, image_size: int, seed: int) -> dict:
    """Render one row with every column."""
    scene = render_scene(index, split, subset, image_size, seed)
    scene_number, frame = divmod(index, FRAMES[subset])
    # A scene counts its objects from far to near, which differs between the views of a pair; a row counts them by id.
    order = np.argsort([item.instance_id for item in scene.objects])
    numbers = np.zeros(len(order) + 1, np.uint8)
    numbers[order + 1] = np.arange(1, len(order) + 1)
    areas = np.bincount(scene.instances.ravel(), minlength=len(scene.objects) + 1)[1:]
    return {
        "image": encode(scene.image, "BMP"),
        "label": scene.label,
        "instance_id": scene.objects[int(areas.argmax())].instance_id,
        "caption": scene.caption,
        "mask": encode(scene.mask, "PNG"),
        "instances": encode(numbers[scene.instances], "PNG"),
        "depth": encode((scene.depth * DEPTH_UNIT).astype(np.uint16), "PNG"),
        "keypoints": [
            {"instance_id": scene.objects[place].instance_id, "points": scene.keypoints[place].tolist()}
            for place in order
        ],
        "scene": scene_number,
        "frame": frame,
    }


def scene_features() -> "Features":
    """Return the columns of the scenes as `datasets` declares them."""
    from datasets import ClassLabel, Features, Image, List, Value

    return Features(
        {
            "image": Image(),
            "label": ClassLabel(names=list(SCENE_CLASSES)),
            "instance_id": Value("int64"),
            "caption": Value("string"),
            "mask": Image(),
            "instances": Image(),
            "depth": Image(),
            "keypoints": List({"instance_id": Value("int64"), "points": List(List(Value("float32")))}),
            "scene": Value("int64"),
            "frame": Value("int64"),
        }
    )


def generate(indices: range, split: str, subset: str, image_size: int, seed: int) -> Iterator[dict]:
    for index in indices:
        yield scene_row(index, split, subset, image_size, seed)


def load_scenes(
    split: str, num_images: int, subset: str = "single", image_size: int = 64, seed: int = 0, streaming: bool = False
) -> "Dataset | IterableDataset":
    """Return rendered scenes as a `datasets.Dataset`, or as an `IterableDataset` of up to 64 shards.

    Columns: image (BMP); label (class of the largest object); instance_id (that object's); caption; mask (0
    background, 1 + class); instances (0 background, k for the object at keypoints[k - 1]); depth (16-bit PNG,
    millimetres); keypoints (for each object, by id: instance_id and six points x, y, seen, in pixels); scene and frame
    (rows of a pair, two, or clip, eight, share a scene and its objects, and come one after another in one shard). Ids
    name objects within a seed, split and subset. The last pair or clip has fewer rows if num_images ends within
    it. Raises `Refused` for an unknown split or subset, or a count, size or seed out of range.
    """
    from datasets import Dataset, IterableDataset

    check_arguments(split, subset, num_images=num_images, image_size=image_size, seed=seed)
    fixed: dict[str, Any] = {"split": split, "subset": subset, "image_size": image_size, "seed": seed}
    features = scene_features()
    if streaming:
        # A list in gen_kwargs is what `datasets` splits into shards: one range of rows each, of whole pairs or clips.
        frames = FRAMES[subset]
        num_scenes = -(-num_images // frames)
        scenes, left = divmod(num_scenes, num_shards := min(NUM_SHARDS, num_scenes))
        ends = [frames * (scenes * shard + min(shard, left)) for shard in range(num_shards + 1)]
        shards = [range(start, min(end, num_images)) for start, end in zip(ends, ends[1:], strict=False)]
        return IterableDataset.from_generator(
            generate_shards, features=features, gen_kwargs={"shards": shards, **fixed}
        )
    rows = list(generate(range(num_images), **fixed))
    return Dataset.from_list(rows, features=features)


def generate_shards(shards: list[range], **fixed: Any) -> Iterator[dict]:
    for indices in shards:
        yield from generate(indices, **fixed)


def scenes_checksum(image_size: int = 64) -> str:
    """Return a hash of some scenes of every subset and split: machines with the same checksum render the same data."""
    digest = hashlib.sha256(SCENES_VERSION.encode())
    for split in SPLITS:
        for subset in SUBSETS:
            for index in range(10):
                scene = render_scene(index, split, subset, image_size)
                for array in (scene.image >> 2, scene.mask, scene.instances):
                    digest.update(array.tobytes())
                digest.update(scene.caption.encode())
    return digest.hexdigest()[:16]
