"""Boxes of random resized crops."""

import math
from collections.abc import Iterable


# Width over height.
ASPECT = (3 / 4, 4 / 3)


def fitting_crop(
    height: int, width: int, scale: tuple[float, float] | list[float], tries: Iterable[tuple[float, float]]
) -> tuple[int, int] | None:
    """Return the height and width of the first of `tries` that fits into an image, None if none does.

    A try is two numbers in 0..1: the first gives the crop's share of the image's area, from `scale[0]` to `scale[1]`;
    the second its aspect ratio within `ASPECT`, on a logarithmic scale. As in torchvision's random resized crop.
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
    """Return top, left, height and width of the largest centred crop with an aspect ratio within `ASPECT`."""
    h, w = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w
