"""Boxes of random resized crops."""

import math
from collections.abc import Iterable


# Width over height.
ASPECT = (3 / 4, 4 / 3)


def fitting_crop(
    height: int, width: int, scale: tuple[float, float] | list[float], tries: Iterable[tuple[float, float]]
) -> tuple[int, int] | None:
    """Return the height and width of the first of `tries` that fits into an image, None where none does.

    A try is two numbers in 0..1: where the crop's share of the area lies within `scale`, and its aspect within `ASPECT`,
    whose logarithm is uniform. As torchvision's random resized crop.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for first, second in tries:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * first)
        ratio = math.exp(low + (high - low) * second)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return h, w
    return None


def central_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the largest crop at an image's centre whose aspect is within `ASPECT`."""
    h, w = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w
