"""Layout of pictures: grids of images with titles, and of pairs of images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .style import PALE, SMALL, add_axes, new_figure, show, text_width, write


if TYPE_CHECKING:
    from matplotlib.figure import Figure


GAP, HEAD = 8, 32
# The smallest width of a figure, and the largest at which it has two pairs per line.
LEAST_WIDTH, MOST_WIDTH = 480, 1200


def tile_size(height: int, width: int, longer: int = 240) -> tuple[int, int]:
    """Return height and width of an image resized to `longer` pixels on its longer side."""
    most = max(height, width)
    return max(1, round(height * longer / most)), max(1, round(width * longer / most))


def fit_image(image: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 image [3,H,W] to a tile [h,w,3]."""
    return np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.LANCZOS))


def fit_height(image: torch.Tensor, height: int) -> np.ndarray:
    """Resize a uint8 image [3,H,W] to a tile [height,w,3] of the same aspect ratio."""
    return fit_image(image, (height, max(1, round(height * image.shape[2] / image.shape[1]))))


def fit_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize values of pixels or patches [H,W,...] to a tile [h,w,...] by nearest-neighbour interpolation."""
    picks = [
        (2 * np.arange(wanted) + 1) * have // (2 * wanted) for have, wanted in zip(values.shape, size, strict=False)
    ]
    return values[np.ix_(*picks)]


def lay_tiles(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = (), labels: Sequence[str] = (), below: int = 0
) -> "Figure":
    """Arrange rows of tiles [h,w,3] in a figure, with a title above each column and a label left of each row.

    Leaves `below` pixels free at the bottom. Returns the figure; it has one axes per tile, row by row, with data
    coordinates in pixels of the tile.
    """
    cell = max(tile.shape[1] for row in rows for tile in row)
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    left = GAP + (round(max(map(text_width, labels))) + GAP if labels else 0)
    top = HEAD if titles else GAP
    width = left + max(map(len, rows)) * (cell + GAP)
    figure = new_figure(max(LEAST_WIDTH, width), top + sum(heights) + len(rows) * GAP + below)
    for column, title in enumerate(titles):
        write(figure, title, left + column * (cell + GAP) + cell / 2, top / 2 + 1, ha="center")
    for index, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if labels:
            write(figure, labels[index], GAP, top + height / 2)
        for column, tile in enumerate(row):
            start = left + column * (cell + GAP) + (cell - tile.shape[1]) // 2
            show(add_axes(figure, start, top + (height - tile.shape[0]) // 2, tile.shape[1], tile.shape[0]), tile)
        top += height + GAP
    return figure


def lay_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[str], caption: str) -> "Figure":
    """Arrange pairs of tiles [h,w,3] of equal height in a figure, one or two per line, with titles and a caption.

    Returns the figure; it has one axes per pair, with data coordinates in pixels of the left tile; the right tile
    starts `GAP` pixels after it.
    """
    margin, height = 2 * GAP, pairs[0][0].shape[0]
    widths = [left.shape[1] + GAP + right.shape[1] for left, right in pairs]
    step = margin + max(*widths, *(round(text_width(title)) for title in titles))
    columns = 2 if margin + 2 * step <= MOST_WIDTH and len(pairs) > 1 else 1
    num_lines = -(-len(pairs) // columns)
    width = margin + max(columns * step, round(text_width(caption, SMALL)) + margin)
    figure = new_figure(width, num_lines * (HEAD + height + GAP) + 3 * GAP)
    for index, (left, right) in enumerate(pairs):
        start, top = margin + index % columns * step, index // columns * (HEAD + height + GAP) + HEAD
        write(figure, titles[index], start, top - HEAD / 2 + 2)
        axes = add_axes(figure, start, top, widths[index], height)
        show(axes, left)
        show(axes, right, left.shape[1] + GAP)
    write(figure, caption, margin, figure.bbox.height - 2 * GAP, SMALL, PALE)
    return figure
