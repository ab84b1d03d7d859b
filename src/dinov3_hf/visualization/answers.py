"""Pictures of image retrieval: queries with their nearest images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .style import RIGHT, WRONG, Legend, to_image
from .tiles import GAP, fit_image, lay_tiles, tile_size


SIDE, FRAME = 128, 4


def answers_picture(rows: Sequence[tuple[torch.Tensor, Sequence[tuple[torch.Tensor, bool]]]]) -> Image.Image:
    """Draw each query in a row with its nearest images, framed green if right, else red; uint8 images [3,H,W]."""

    def tile(image: torch.Tensor) -> np.ndarray:
        return fit_image(image, tile_size(image.shape[1], image.shape[2], SIDE))

    tiles = [[tile(query), *(tile(answer) for answer, _ in answers)] for query, answers in rows]
    titles = ["query", *(f"answer {place}" for place in range(1, max(map(len, tiles))))]
    legend = Legend([("right", RIGHT), ("wrong", WRONG)], SIDE * len(titles))
    figure = lay_tiles(tiles, titles, below=legend.height + GAP)
    rights = [right for _, answers in rows for right in (None, *(right for _, right in answers))]
    for axes, right in zip(figure.axes, rights, strict=True):
        if right is not None:
            axes.spines[:].set(visible=True, linewidth=FRAME, color=RIGHT if right else WRONG)
    legend.draw(figure, GAP, figure.bbox.height - legend.height - GAP)
    return to_image(figure)
