"""Pictures of heat maps: one value per patch."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from .features import heat_colours
from .style import draw_scale, to_image
from .tiles import GAP, fit_image, fit_map, lay_tiles, tile_size


SIDE = 144


def heat_picture(
    images: Sequence[torch.Tensor], maps: Mapping[str, Sequence[np.ndarray]], highest: str
) -> Image.Image:
    """Draw images (uint8 [3,H,W]) in a row, and below it a row for each name with their maps [h,w] of values in 0..1.

    `highest` is the label of the value 1 in the legend.
    """
    sizes = [tile_size(image.shape[1], image.shape[2], SIDE) for image in images]
    rows = {"image": [fit_image(*one) for one in zip(images, sizes, strict=True)]}
    for name, values in maps.items():
        tiles = (fit_map(heat_colours(of_image), size) for of_image, size in zip(values, sizes, strict=True))
        rows[name] = [tile.round().astype(np.uint8) for tile in tiles]
    figure = lay_tiles(list(rows.values()), labels=list(rows), below=22 + GAP)
    scale = heat_colours(np.linspace(0, 1, 240)[None])[0].round().astype(np.uint8)
    draw_scale(figure, scale, ("0", highest), figure.axes[0].get_window_extent().x0, figure.bbox.height - 22 - GAP)
    return to_image(figure)
