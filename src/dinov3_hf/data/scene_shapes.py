"""The ten families of shapes in the rendered scenes: silhouettes and keypoints from a few free proportions.

A shape is defined in coordinates of its own, roughly in [-1, 1], x to the right and y down. A function of a shape
takes coordinates `x` and `y` and four proportions `u` in [0, 1], which vary between instances; it returns the signed
distance to the outline, negative inside, and the keypoints.
"""

from functools import reduce

import numpy as np


Point = tuple[float, float]
Shape = tuple[np.ndarray, list[Point]]


def circle(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
    return np.hypot(x - cx, y - cy) - radius


def ellipse(x: np.ndarray, y: np.ndarray, cx: float, cy: float, a: float, b: float) -> np.ndarray:
    """Return a scaled circle's distance: exact only at the outline, which is enough for rendering."""
    return (np.hypot((x - cx) / a, (y - cy) / b) - 1) * min(a, b)


def box(x: np.ndarray, y: np.ndarray, cx: float, cy: float, half_width: float, half_height: float) -> np.ndarray:
    dx, dy = np.abs(x - cx) - half_width, np.abs(y - cy) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def polygon(x: np.ndarray, y: np.ndarray, *corners: Point) -> np.ndarray:
    """Return a convex polygon's distance, the largest of its edges' half-planes; corners clockwise (y down)."""

    def edge(start: Point, end: Point) -> np.ndarray:
        (ax, ay), (bx, by) = start, end
        return ((by - ay) * (x - ax) - (bx - ax) * (y - ay)) / np.hypot(bx - ax, by - ay)

    return reduce(np.maximum, map(edge, corners, corners[1:] + corners[:1]))


def union(*parts: np.ndarray) -> np.ndarray:
    result = parts[0]
    for part in parts[1:]:
        result = np.minimum(result, part)
    return result


def fish(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    tall, tail, fin = 0.3 + 0.2 * u[0], 0.25 + 0.2 * u[1], 0.2 + 0.25 * u[2]
    shape = union(
        ellipse(x, y, 0.15, 0, 0.75, tall),
        polygon(x, y, (-0.45, 0), (-0.95, tail), (-0.95, -tail)),
        polygon(x, y, (-0.1, -tall + 0.1), (0.1, -tall - fin), (0.35, -tall + 0.1)),
    )
    return shape, [
        (0.8, 0),
        (-0.9, -0.8 * tail),
        (-0.9, 0.8 * tail),
        (0.1, -tall - 0.6 * fin),
        (0.15, tall - 0.08),
        (0.15, 0),
    ]


def tree(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    wide, trunk, top = 0.45 + 0.2 * u[0], 0.08 + 0.08 * u[1], 0.1 + 0.2 * u[2]
    shape = union(
        box(x, y, 0, 0.6, trunk, 0.4),
        circle(x, y, 0, -0.35 - top, 0.42),
        circle(x, y, -wide / 1.6, -0.1, wide / 1.5),
        circle(x, y, wide / 1.6, -0.1, wide / 1.5),
    )
    return shape, [(0, 0.9), (0, 0.5), (0, -0.65 - top), (-wide / 1.6, -0.1), (wide / 1.6, -0.1), (0, -0.3)]


def house(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    wide, wall, roof = 0.55 + 0.25 * u[0], 0.3 + 0.2 * u[1], 0.4 + 0.35 * u[2]
    side, eave = 1 if u[3] < 0.5 else -1, 0.85 - 2 * wall
    shape = union(
        box(x, y, 0, 0.85 - wall, wide, wall),
        polygon(x, y, (-wide - 0.15, eave), (0, eave - roof), (wide + 0.15, eave)),
        box(x, y, side * 0.4 * wide, eave - 0.55 * roof, 0.09, 0.25),
    )
    corners = [(s * (wide - 0.08), 0.77) for s in (-1, 1)]
    return shape, [*corners, (0, eave - 0.85 * roof), (-wide, eave - 0.05), (wide, eave - 0.05), (0, 0.85 - wall)]


def car(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    low, cabin, wheel = 0.2 + 0.1 * u[0], 0.3 + 0.25 * u[1], 0.17 + 0.08 * u[2]
    back = -0.6 + 0.25 * u[3]
    shape = union(
        box(x, y, 0, 0.2, 0.88, low) - 0.05,
        polygon(x, y, (back, 0.05), (back + 0.2, -cabin), (0.35, -cabin), (0.65, 0.05)),
        circle(x, y, -0.5, 0.25 + low, wheel),
        circle(x, y, 0.5, 0.25 + low, wheel),
    )
    wheels = [(s * 0.5, 0.25 + low) for s in (-1, 1)]
    return shape, [*wheels, (-0.85, 0.2), (0.85, 0.2), (back + 0.25, 0.08 - cabin), (0.32, 0.08 - cabin)]


def star(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    points, inner = 5, 0.35 + 0.2 * u[0]
    angle = np.arctan2(x, -y) % (2 * np.pi / points)
    angle = np.minimum(angle, 2 * np.pi / points - angle)
    radius = np.hypot(x, y)
    px, py = radius * np.sin(angle), radius * np.cos(angle)
    # One edge, from the tip (0, .95) to the valley next to it.
    vx, vy = 0.95 * inner * np.sin(np.pi / points), 0.95 * inner * np.cos(np.pi / points)
    length = np.hypot(vx, 0.95 - vy)
    shape = ((0.95 - vy) * px + vx * (py - 0.95)) / length
    turns = 2 * np.pi * np.arange(points) / points
    return shape, [*((0.8 * np.sin(t), -0.8 * np.cos(t)) for t in turns), (0.0, 0.0)]


def key(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    ring, bit, gap = 0.34 + 0.1 * u[0], 0.18 + 0.16 * u[1], 0.2 + 0.12 * u[2]
    hole = circle(x, y, -0.55, 0, ring - 0.19)
    shape = union(
        np.maximum(circle(x, y, -0.55, 0, ring), -hole),
        box(x, y, 0.3, 0, 0.62, 0.1),
        box(x, y, 0.8, bit / 2 + 0.05, 0.09, bit / 2 + 0.08),
        box(x, y, 0.8 - 0.09 - gap, bit / 2 + 0.02, 0.08, bit / 2 + 0.05),
    )
    rim = ring - 0.09
    points = [(-0.55 - rim, 0), (-0.55, -rim), (-0.55, rim), (0.88, 0), (0.8, bit), (0.71 - gap, bit - 0.04)]
    return shape, points


def mushroom(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    wide, tall, stem = 0.65 + 0.25 * u[0], 0.55 + 0.3 * u[1], 0.14 + 0.14 * u[2]
    cap = np.maximum(ellipse(x, y, 0, 0.05, wide, tall), y - 0.05)
    shape = union(cap, box(x, y, 0, 0.42, stem, 0.42) - 0.03, ellipse(x, y, 0, 0.82, stem + 0.1, 0.12))
    side = 0.85 * wide
    return shape, [(0, 0.1 - tall), (-side, 0), (side, 0), (0, 0.82), (0, 0.4), (0, -0.1)]


def cup(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    top, bottom, tall = 0.5 + 0.15 * u[0], 0.3 + 0.2 * u[1], 0.5 + 0.3 * u[2]
    handle = np.abs(circle(x, y, (top + bottom) / 2, 0, 0.3)) - 0.08
    shape = union(polygon(x, y, (-top, -tall), (top, -tall), (bottom, tall), (-bottom, tall)), handle)
    grip = (top + bottom) / 2 + 0.3
    points = [(s * (top - 0.1), 0.1 - tall) for s in (-1, 1)] + [(s * (bottom - 0.1), tall - 0.1) for s in (-1, 1)]
    return shape, [*points, (grip, 0), (0, 0)]


def boat(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    keel, mast, sail = 0.35 + 0.25 * u[0], 0.7 + 0.25 * u[1], 0.4 + 0.3 * u[2]
    shape = union(
        polygon(x, y, (-0.9, 0.3), (0.9, 0.3), (keel, 0.8), (-keel, 0.8)),
        box(x, y, 0, 0.3 - mast / 1.6, 0.05, mast / 1.6),
        polygon(x, y, (0.02, 0.2), (0.02, 0.2 - 1.1 * mast), (0.02 + sail + 0.2, 0.2)),
        polygon(x, y, (-0.02, 0.2), (-0.02 - sail, 0.2), (-0.02, 0.2 - 0.8 * mast)),
    )
    return shape, [
        (-0.75, 0.38),
        (0.75, 0.38),
        (0, 0.7),
        (0.06, 0.3 - 0.95 * mast),
        (0.5 * sail, 0.1),
        (-0.5 * sail, 0.12),
    ]


def chair(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> Shape:
    back, wide, leg = 0.55 + 0.35 * u[0], 0.38 + 0.2 * u[1], 0.4 + 0.25 * u[2]
    thick = 0.07 + 0.05 * u[3]
    shape = union(
        box(x, y, 0, 0.15, wide, 0.1),
        box(x, y, -wide + thick, 0.15 - back / 1.4, thick, back / 1.4),
        box(x, y, -wide + thick, 0.2 + leg / 1.5, thick, leg / 1.5),
        box(x, y, wide - thick, 0.2 + leg / 1.5, thick, leg / 1.5),
        box(x, y, -0.1 * wide, 0.2 - 1.2 * back, 0.9 * wide, 0.08),
    )
    feet = [(s * (wide - thick), 0.15 + 1.3 * leg) for s in (-1, 1)]
    points = [*feet, (0, 0.15), (wide - 0.08, 0.15), (thick - wide, 0.15 - 0.6 * back), (0.5 * wide, 0.2 - 1.2 * back)]
    return shape, points


SHAPES = {
    "fish": fish,
    "tree": tree,
    "house": house,
    "car": car,
    "star": star,
    "key": key,
    "mushroom": mushroom,
    "cup": cup,
    "boat": boat,
    "chair": chair,
}
NUM_KEYPOINTS = 6
NUM_PROPORTIONS = 4
