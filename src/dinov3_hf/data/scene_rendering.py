"""Sample and render scenes with exact labels, captions, masks, depth and keypoints.

Ten classes of objects (`scene_shapes.py`) with random position, scale, rotation, light and background. Most objects
have the usual material of their class and half have its usual colour: both are correlated with the class, and only the
shape determines it. A scene is a function of (seed, split, subset, index) and has the same content at every size in
pixels. Some combinations of class with colour and with material never occur in train; the split "compositional" has
only these.
"""

import colorsys
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from ..errors import Refused
from .scene_shapes import NUM_KEYPOINTS, NUM_PROPORTIONS, SHAPES


SCENE_CLASSES = tuple(SHAPES)
SPLITS = ("train", "validation", "test", "compositional")
SUBSETS = ("single", "crowded", "pairs", "clips")
FRAMES = {"single": 1, "crowded": 1, "pairs": 2, "clips": 8}
COLOURS = {
    "red": 0.0,
    "orange": 0.075,
    "yellow": 0.155,
    "lime": 0.25,
    "green": 0.36,
    "cyan": 0.5,
    "blue": 0.62,
    "purple": 0.74,
    "magenta": 0.84,
    "pink": 0.93,
}  # hues
MATERIALS = ("plain", "striped", "dotted", "checkered", "wavy", "ringed", "gridded", "woven", "spotted", "scaly")
BACKGROUNDS = ("ground", "wall", "haze")
SIZES = ("small", "large")
USUAL_MATERIAL, USUAL_COLOUR = 0.8, 0.5  # how often an object has those of its class
BACKGROUND_DEPTH, UNIT_RADIUS_DEPTH = 8.0, 0.9  # metres; the second for an object whose radius is the image's side
LEAST = {"num_images": 1, "image_size": 8, "seed": 0, "index": 0}


@dataclass
class SceneObject:
    """One object: what it is, and its pose in units of the image's side (x right, y down).

    `instance_id` names one object within a seed, split and subset; another split's objects reuse the numbers.
    """

    instance_id: int
    label: int
    colour: int
    material: int
    proportions: np.ndarray
    shade: np.ndarray  # saturation, value, second value, texture frequency, texture angle, texture phase
    x: float
    y: float
    radius: float
    angle: float
    flip: bool
    depth: float


@dataclass
class Scene:
    """A rendered scene: image [H, W, 3] uint8, mask and instances [H, W] uint8, depth [H, W] in metres, keypoints.

    `mask` is 0 for background and 1 + class elsewhere; `instances` is 0 or 1 + the object's place in `objects`;
    `keypoints` [N, 6, 3] holds x and y in pixels and 1 where the point is seen, for each object.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    depth: np.ndarray
    keypoints: np.ndarray
    objects: list[SceneObject]
    label: int
    caption: str


def held_out(label: int, colour: int, material: int) -> bool:
    """Say whether a combination never occurs in train, but only in the compositional split."""
    return colour == (3 * label + 1) % len(COLOURS) or material == (usual_material(label) + 1 + label % 3) % len(
        MATERIALS
    )


def usual_material(label: int) -> int:
    """Return the material that most objects of a class have."""
    return (3 * label + 1) % len(MATERIALS)


def usual_colour(label: int) -> int:
    """Return the most frequent colour of a class."""
    return 7 * label % len(COLOURS)


def sample_object(label: int, instance_id: int, split: str, rng: np.random.Generator) -> SceneObject:
    """Sample an object's colour, material and proportions; `place` samples its pose."""
    while True:
        colour = usual_colour(label) if rng.random() < USUAL_COLOUR else int(rng.integers(len(COLOURS)))
        material = usual_material(label) if rng.random() < USUAL_MATERIAL else int(rng.integers(len(MATERIALS)))
        if held_out(label, colour, material) == (split == "compositional"):
            break
    low, high = (0.45, 0.55, 0.25, 5.0, 0.0, 0.0), (1.0, 1.0, 0.6, 8.0, np.pi, 2 * np.pi)
    return SceneObject(
        instance_id,
        label,
        colour,
        material,
        rng.random(NUM_PROPORTIONS),
        rng.uniform(low, high),
        0.5,
        0.5,
        0.3,
        0.0,
        False,
        3.0,
    )


def place(item: SceneObject, radius: tuple[float, float], spread: float, rng: np.random.Generator) -> None:
    """Sample an object's pose: mostly inside the image, turned by up to 30 degrees, mirrored half the time."""
    item.radius = float(rng.uniform(*radius))
    item.x, item.y = (float(value) for value in rng.uniform(0.5 - spread, 0.5 + spread, 2))
    item.angle = float(rng.uniform(-0.5, 0.5))
    item.flip = bool(rng.random() < 0.5)
    # Farther objects look smaller, so that an image tells their depth.
    item.depth = float(rng.uniform(0.9, 1.1)) * UNIT_RADIUS_DEPTH / item.radius


def check_arguments(split: str, subset: str, **numbers: int) -> None:
    """Raise `Refused` for a split, subset or number that no scene can have."""
    if split not in SPLITS:
        raise Refused(f"split: got {split!r}, accepted: {', '.join(SPLITS)}")
    if subset not in SUBSETS:
        raise Refused(f"subset: got {subset!r}, accepted: {', '.join(SUBSETS)}")
    for name, value in numbers.items():
        least = LEAST[name]
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise Refused(f"{name}: got {value!r}, accepted: a whole number of at least {least}")


def generator(seed: int, split: str, subset: str, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), SUBSETS.index(subset), *index])


def sample_objects(index: int, split: str, subset: str, seed: int) -> list[SceneObject]:
    """Sample the objects of row `index`, farthest first; rows of a pair or clip share objects and differ in pose."""
    group, frame = divmod(index, FRAMES[subset])
    rng = generator(seed, split, subset, group)
    # Labels take turns within each ten rows, so that every split is balanced.
    order = generator(seed, split, subset, group // len(SCENE_CLASSES), 1).permutation(len(SCENE_CLASSES))
    first = int(order[group % len(SCENE_CLASSES)])
    count = {
        "single": 1,
        "crowded": int(rng.integers(2, 6)),
        "pairs": int(rng.integers(1, 4)),
        "clips": int(rng.integers(1, 4)),
    }[subset]
    labels = [first, *(int(value) for value in rng.integers(len(SCENE_CLASSES), size=count - 1))]
    objects = [sample_object(label, group * 8 + number, split, rng) for number, label in enumerate(labels)]
    if subset == "pairs":
        rng = generator(seed, split, subset, group, 2 + frame)
    for number, item in enumerate(objects):
        dominant = number == 0
        radius = (0.26, 0.46) if subset == "single" else (0.26, 0.4) if dominant else (0.16, 0.3)
        place(item, radius, 0.17 if subset == "single" else 0.3, rng)
    if subset == "clips":
        for item in objects:
            speed = rng.uniform(-0.03, 0.03, 4)
            item.x, item.y = item.x + frame * speed[0], item.y + frame * speed[1]
            # Depth stays: what is in front would change between two frames.
            item.angle, item.radius = item.angle + 3 * frame * speed[2], item.radius * (1 + frame * speed[3])
    return sorted(objects, key=lambda item: -item.depth)


def render_scene(
    index: int, split: str = "train", subset: str = "single", image_size: int = 64, seed: int = 0
) -> Scene:
    """Render one row of a subset as arrays; the same arguments always give the same scene.

    Raises `Refused` for an unknown split or subset, a negative index or seed, or an image of less than 8 pixels.
    """
    check_arguments(split, subset, image_size=image_size, seed=seed, index=index)
    objects = sample_objects(index, split, subset, seed)
    frame = index if subset != "clips" else index // FRAMES[subset]
    rng = generator(seed, split, subset, frame, 100)
    centres = ((np.arange(image_size, dtype=np.float32) + 0.5) / image_size).astype(np.float32)
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    image, depth = render_background(background, centres, rng)
    light = rng.uniform(0, 2 * np.pi)
    direction = np.float32(np.cos(light)), np.float32(np.sin(light))
    tint = (rng.uniform(0.65, 1.1) * (1 + rng.uniform(-0.12, 0.12, 3))).astype(np.float32)
    instances = np.zeros((image_size, image_size), np.uint8)
    mask = np.zeros_like(instances)
    keypoints = np.zeros((len(objects), NUM_KEYPOINTS, 3), np.float32)
    for number, item in enumerate(objects):
        keypoints[number, :, :2] = (
            render_object(item, number, centres, direction, image, depth, instances, mask) * image_size
        )
    image = (np.clip(image * tint, 0, 1) * 255 + 0.5).astype(np.uint8)
    for number, points in enumerate(keypoints):
        inside = ((points[:, :2] >= 0) & (points[:, :2] < image_size)).all(axis=1)
        x, y = np.clip(points[:, :2].astype(int), 0, image_size - 1).T
        points[:, 2] = inside & (instances[y, x] == number + 1)
    areas = np.bincount(instances.ravel(), minlength=len(objects) + 1)[1:]
    label = objects[0].label if subset == "single" else objects[int(areas.argmax())].label
    return Scene(image, mask, instances, depth, keypoints, objects, label, describe(objects, areas, background, rng))


def colour_of(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def render_background(kind: str, centres: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the colours [S, S, 3] in 0..1 and depth [S, S] behind the objects."""
    size = len(centres)
    x, y = centres[None, :], centres[:, None]
    first = colour_of(rng.random(), rng.uniform(0.0, 0.45), rng.uniform(0.3, 1))
    second = np.clip(first + rng.uniform(-0.2, 0.2, 3), 0, 1).astype(np.float32)
    depth = np.full((size, size), BACKGROUND_DEPTH, np.float32)
    waves = np.zeros((size, size), np.float32)
    for _ in range(3):
        fx, fy, phase = rng.uniform((-18, -18, 0), (18, 18, 2 * np.pi))
        waves += np.sin(np.float32(fx) * x + np.float32(fy) * y + np.float32(phase))
    waves *= np.float32(rng.uniform(0.0, 0.04))
    if kind == "ground":
        horizon, tilt = rng.uniform(0.25, 0.75), rng.uniform(-0.2, 0.2)
        below = y - np.float32(horizon) - np.float32(tilt) * (x - 0.5)
        share = np.clip(0.5 + size * below, 0, 1)
        depth -= np.clip(below, 0, 1) * 1.5
    else:
        angle = rng.uniform(0, 2 * np.pi)
        share = np.clip(0.5 + (x - 0.5) * np.float32(np.cos(angle)) + (y - 0.5) * np.float32(np.sin(angle)), 0, 1)
        if kind == "wall":
            tiles = rng.uniform(4, 12)
            waves += np.float32(0.03) * np.sign(
                np.sin(np.float32(tiles * np.pi) * x) * np.sin(np.float32(tiles * np.pi) * y)
            )
    image = first + share[..., None] * (second - first)
    image += waves[..., None]
    return image, depth


def render_object(
    item: SceneObject,
    number: int,
    centres: np.ndarray,
    direction: tuple[np.float32, np.float32],
    image: np.ndarray,
    depth: np.ndarray,
    instances: np.ndarray,
    mask: np.ndarray,
) -> np.ndarray:
    """Draw one object over the arrays, in place; return its keypoints [6, 2] in units of the image's side."""
    size = len(centres)
    reach = 1.35 * item.radius
    top, bottom = np.searchsorted(centres, (item.y - reach, item.y + reach))
    left, right = np.searchsorted(centres, (item.x - reach, item.x + reach))
    cos, sin = np.float32(np.cos(item.angle)), np.float32(np.sin(item.angle))
    mirror = -1 if item.flip else 1
    x = (centres[None, left:right] - np.float32(item.x)) / np.float32(item.radius)
    y = (centres[top:bottom, None] - np.float32(item.y)) / np.float32(item.radius)
    across, down = (cos * x + sin * y) * mirror, cos * y - sin * x
    distance, points = SHAPES[SCENE_CLASSES[item.label]](across, down, item.proportions)
    turned = np.array(points, np.float32) * (mirror, 1) @ np.array([[cos, sin], [-sin, cos]], np.float32)
    keypoints = turned * np.float32(item.radius) + np.array([item.x, item.y], np.float32)
    if distance.size:
        cover = np.clip(0.5 - distance * np.float32(item.radius * size), 0, 1)
        relief = np.sqrt(np.clip(-distance * 2, 0, 1))
        shading = 0.72 + 0.28 * relief + 0.22 * (x * direction[0] + y * direction[1])
        saturation, value, second = item.shade[:3]
        hue = list(COLOURS.values())[item.colour] + 0.025 * (item.proportions[3] - 0.5)
        main = colour_of(hue, saturation, value)
        other = (
            colour_of(hue, saturation * 0.6, value * second) if item.shade[4] < np.pi / 2 else 1 - 0.35 * (1 - main)
        )
        share = texture(item, across, down)[..., None]
        colours = (main + share * (other - main)) * shading[..., None]
        window = (slice(top, bottom), slice(left, right))
        image[window] += cover[..., None] * (colours - image[window])
        solid = cover >= 0.5
        depth[window] = np.where(solid, np.float32(item.depth) - 0.15 * relief, depth[window])
        instances[window] = np.where(solid, number + 1, instances[window])
        mask[window] = np.where(solid, item.label + 1, mask[window])
    return keypoints


def texture(item: SceneObject, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the share of the second colour, 0..1, at points in an object's own coordinates."""
    material = MATERIALS[item.material]
    frequency, angle, phase = (np.float32(value) for value in item.shade[3:])
    if material == "plain":
        return np.zeros(x.shape, np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = frequency * (cos * x + sin * y) * 2, frequency * (cos * y - sin * x) * 2
    if material == "striped":
        pattern = np.sin(u + phase)
    elif material == "dotted":
        pattern = np.sin(u) * np.sin(v) * 2 - 0.7
    elif material == "checkered":
        pattern = np.sin(u) * np.sin(v)
    elif material == "wavy":
        pattern = np.sin(u + 1.5 * np.sin(v + phase))
    elif material == "ringed":
        pattern = np.sin(2 * frequency * np.hypot(x, y) + phase)
    elif material == "gridded":
        pattern = np.maximum(np.sin(u), np.sin(v)) - 0.8
    elif material == "woven":
        pattern = np.where(np.sin(u / 2) * np.sin(v / 2) > 0, np.sin(2 * u), np.sin(2 * v))
    elif material == "spotted":
        pattern = np.sin(0.55 * u + phase) + np.sin(0.55 * v) - 0.9
    else:
        pattern = np.sin(u + 2 * np.abs(np.sin(v / 2))) - 0.3
    return np.clip(0.5 + 3 * pattern, 0, 1)


def name_of(item: SceneObject) -> str:
    colour, material = list(COLOURS)[item.colour], MATERIALS[item.material]
    return (
        f"{colour} {SCENE_CLASSES[item.label]}"
        if material == "plain"
        else f"{material} {colour} {SCENE_CLASSES[item.label]}"
    )


def describe(objects: list[SceneObject], areas: np.ndarray, background: str, rng: np.random.Generator) -> str:
    """Return a caption that is true of the largest visible objects."""
    seen = [objects[index] for index in np.argsort(-areas, kind="stable") if areas[index] > 0]
    place_words = {"ground": "on the ground", "wall": "in front of a wall", "haze": "in the haze"}[background]
    if not seen:
        return f"nothing {place_words}"
    main = seen[0]
    size = SIZES[int(main.radius > 0.3)]
    style = int(rng.integers(3))
    if len(seen) == 1:
        forms = (
            f"a {size} {name_of(main)} {place_words}",
            f"a {name_of(main)}",
            f"a picture of a {size} {name_of(main)}",
        )
        return forms[style]
    other = seen[1]
    dx, dy = main.x - other.x, main.y - other.y
    relation = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
    sentence = f"a {name_of(main)} {relation} a {name_of(other)}"
    return (sentence, f"{sentence} {place_words}", f"{len(seen)} objects: {sentence}")[style]
