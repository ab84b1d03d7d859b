"""Pictures of segmentation: masks of classes drawn over images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .style import Legend, to_image
from .tiles import GAP, fit_image, fit_map, lay_tiles, tile_size


# With more classes the colours repeat.
PALETTE = np.array(
    [(0, 0, 0), (230, 80, 60), (60, 130, 230), (70, 180, 90), (240, 190, 50), (150, 90, 210), (60, 190, 200)]
    + [(240, 130, 180), (150, 110, 70), (150, 160, 60), (110, 120, 140), (250, 140, 60), (110, 60, 90)],
    dtype=np.uint8,
)
IGNORED_COLOUR = (25, 25, 25)


def class_colours(labels: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Colour class indices [H,W] as uint8 RGB [H,W,3]; class 0 is black."""
    return PALETTE[np.where(labels == 0, 0, 1 + (labels - 1) % (len(PALETTE) - 1))]


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Overlay classes [H,W] on a uint8 image [H,W,3]; class 0 is not coloured."""
    mixed = (1 - opacity) * image + opacity * class_colours(labels)
    return np.where((labels == 0)[..., None], image, mixed).round().astype(np.uint8)


def classes_picture(
    titles: Sequence[str],
    rows: Sequence[tuple[torch.Tensor, Sequence[np.ndarray]]],
    names: Sequence[str],
    ignore_index: int,
) -> Image.Image:
    """Draw images (uint8 [3,H,W]), each next to overlays of its maps of class indices [H,W], with a legend below."""
    tiles, seen, any_ignored = [], set(), False
    for image, maps in rows:
        size = tile_size(*maps[0].shape)
        line = [fit_image(image, size)]
        # On grey, so that colours of the image are not mistaken for classes.
        grey = line[0].mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
        for labels in maps:
            labels = fit_map(labels, size).astype(np.int64)
            ignored = labels == ignore_index
            any_ignored |= bool(ignored.any())
            seen.update(labels[~ignored].tolist())
            tile = overlay(grey, np.where(ignored, 0, labels))
            tile[ignored] = IGNORED_COLOUR
            line.append(tile)
        tiles.append(line)
    entries: list[tuple[str, object]] = [
        (names[index], class_colours(np.array(index)) / 255) for index in sorted(seen)
    ]
    if 0 in seen:
        entries[0] = (f"{names[0]} (not coloured)", "white")
    entries += [("ignored", np.array(IGNORED_COLOUR) / 255)] if any_ignored else []
    legend = Legend(entries, (1 + len(titles)) * max(tile.shape[1] + GAP for line in tiles for tile in line))
    figure = lay_tiles(tiles, ["image", *titles], below=legend.height + GAP)
    legend.draw(figure, GAP, figure.bbox.height - legend.height - GAP)
    return to_image(figure)
