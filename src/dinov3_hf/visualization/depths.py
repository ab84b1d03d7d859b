"""Pictures of depth maps."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .style import Legend, draw_scale, to_image
from .tiles import GAP, fit_image, fit_map, lay_tiles, tile_size


# Colours from far to near, in equal steps of lightness, from violet over red to yellow.
COLOURS = np.array(
    [(22, 1, 70), (65, 0, 100), (115, 2, 111), (166, 17, 104), (208, 54, 83)]
    + [(242, 95, 48), (254, 147, 33), (254, 198, 82), (255, 244, 103)]
)
GREY = (150, 150, 150)


def depth_colours(depths: np.ndarray, near: float, far: float) -> np.ndarray:
    """Colour depths [H,W] (metres) as uint8 RGB [H,W,3], bright if near and dark if far; grey where unknown (0)."""
    closeness = (far - depths) / max(far - near, 1e-9)
    channels = [np.interp(closeness, np.linspace(0, 1, len(COLOURS)), channel) for channel in COLOURS.T]
    colours = np.stack(channels, axis=-1).round().astype(np.uint8)
    colours[depths <= 0] = GREY
    return colours


def depths_picture(titles: Sequence[str], rows: Sequence[tuple[torch.Tensor, Sequence[np.ndarray]]]) -> Image.Image:
    """Draw images (uint8 [3,H,W]) next to depth maps [H,W] (metres, 0 unknown), all on one scale.

    The first map of each image is the true one; the scale spans the 1st to 99th percentile of these.
    """
    true = [maps[0][maps[0] > 0] for _, maps in rows]
    near, far = np.percentile(np.concatenate(true), (1, 99))
    tiles = []
    for image, maps in rows:
        size = tile_size(*maps[0].shape)
        tiles.append([fit_image(image, size), *(depth_colours(fit_map(depths, size), near, far) for depths in maps)])
    figure = lay_tiles(tiles, ["image", *titles], below=22 + GAP)
    top, scale = figure.bbox.height - 22 - GAP, depth_colours(np.linspace(near, far, 240), near, far)
    end = draw_scale(figure, scale, (f"{near:.2f} m", f"{far:.2f} m"), GAP, top)
    Legend([("unknown", np.array(GREY) / 255)], 240).draw(figure, end + 3 * GAP, top)
    return to_image(figure)
