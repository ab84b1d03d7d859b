"""Keypoints of one image and where they were found in another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from .style import RIGHT, WRONG, to_image
from .tiles import GAP, fit_height, lay_pairs


HEIGHT = 260
CAPTION = (
    "Lines end where a keypoint is found, green where that is within reach, red elsewhere; rings are true places."
)


@dataclass
class Matches:
    """Two uint8 images [3,H,W], and points [K,2] (x, y in pixels): in the source, their true places and those found.

    `hits` [K] says which are found where they should be.
    """

    source: torch.Tensor
    target: torch.Tensor
    points: torch.Tensor
    true: torch.Tensor
    found: torch.Tensor
    hits: torch.Tensor


def matches_picture(pairs: Sequence[Matches], within: str) -> Image.Image:
    """Draw pairs side by side with a line from each keypoint to its match; `within` names the reach that makes a hit."""
    tiles = [(fit_height(pair.source, HEIGHT), fit_height(pair.target, HEIGHT)) for pair in pairs]
    titles = [f"{int(pair.hits.sum())} of {len(pair.hits)} within {within}" for pair in pairs]
    figure = lay_pairs(tiles, titles, CAPTION)
    for axes, pair, (left, _) in zip(figure.axes, pairs, tiles, strict=True):
        right = torch.tensor([left.shape[1] + GAP, 0])
        starts = pair.points * HEIGHT / pair.source.shape[1]
        true, found = (points * HEIGHT / pair.target.shape[1] + right for points in (pair.true, pair.found))
        # White within black shows on any ground.
        for colour, width in (("black", 3.5), ("white", 1.5)):
            axes.plot(*true.T, "o", markersize=9, markerfacecolor="none", color=colour, markeredgewidth=width)
        for start, end, hit in zip(starts.tolist(), found.tolist(), pair.hits.tolist(), strict=True):
            colour = RIGHT if hit else WRONG
            axes.plot(
                *zip(start, end, strict=True), "-o", color=colour, linewidth=1.5, markersize=6, markeredgecolor="white"
            )
    return to_image(figure)
