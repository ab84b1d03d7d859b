"""Pictures of object discovery: true boxes and the predicted one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .style import EDGE, FOUND, RIGHT, to_image
from .tiles import GAP, fit_height, fit_map, lay_pairs


HEIGHT = 200
CAPTION = "Boxes: green true, orange predicted. Right: the eigenvector, red inside the object, blue outside."
INSIDE, OUTSIDE = (214, 47, 39), (49, 104, 190)


@dataclass
class FoundBox:
    """A uint8 image [3,H,W] with its true boxes [K,4] and the predicted box [4] (x0, y0, x1, y1 in 0..1).

    `vector` [h,w] is the eigenvector from which the box was computed; it is positive inside the object. `is_hit` says
    whether the predicted box counts as right.
    """

    image: torch.Tensor
    true: np.ndarray
    box: np.ndarray
    vector: np.ndarray
    is_hit: bool


def boxes_picture(examples: Sequence[FoundBox]) -> Image.Image:
    """Draw images with true and predicted boxes next to their eigenvectors (red inside, blue outside)."""
    from matplotlib.patches import Rectangle

    tiles = [fit_height(one.image, HEIGHT) for one in examples]
    pairs = [
        (tile, fit_map(vector_colours(one.vector), tile.shape[:2])) for tile, one in zip(tiles, examples, strict=True)
    ]
    figure = lay_pairs(pairs, ["hit" if one.is_hit else "no hit" for one in examples], CAPTION)
    for axes, one, tile in zip(figure.axes, examples, tiles, strict=True):
        height, width = tile.shape[:2]
        # Where the eigenvector is 0 it is white like the page: the frame shows where the picture ends.
        frame: dict[str, Any] = {"fill": False, "edgecolor": EDGE, "linewidth": 1, "clip_on": False}
        axes.add_patch(Rectangle((width + GAP, 0), width, height, **frame))
        for some, colour in ((one.true, RIGHT), (one.box[None], FOUND)):
            for x0, y0, x1, y1 in (some * (width, height, width, height)).tolist():
                # A line is centred on its coordinates: move it inside the image.
                for line, ink in ((5, "white"), (3, colour)):
                    corner = (x0 + 2.5, y0 + 2.5)
                    axes.add_patch(
                        Rectangle(corner, x1 - x0 - 5, y1 - y0 - 5, fill=False, edgecolor=ink, linewidth=line)
                    )
    return to_image(figure)


def vector_colours(vector: np.ndarray) -> np.ndarray:
    """Colour an eigenvector [h,w] as uint8 RGB [h,w,3]: red above 0, blue below, paler the closer to 0."""
    # The square root, because a few entries are often many times larger than all others.
    strength = np.sqrt(np.abs(vector) / max(np.abs(vector).max(), 1e-12))[..., None]
    colours = np.where(vector[..., None] > 0, INSIDE, OUTSIDE)
    return (255 + strength * (colours - 255.0)).round().astype(np.uint8)
