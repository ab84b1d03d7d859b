"""Pictures of correspondence: keypoints of one image and their matches in another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from .style import RIGHT, WRONG, to_image
from .tiles import GAP, fit_height, lay_pairs


HEIGHT = 260
CAPTION = "Lines end at predicted points: green if close enough to the true point, else red. Rings are true points."


@dataclass
class Matches:
    """Two uint8 images [3,H,W] and K keypoints.

    `points` [K,2] (x, y in pixels) are those of the source image, `true` and `predicted` their true and predicted
    positions in the target image. `hits` [K] says which predictions are close enough to count as right.
    """

    source: torch.Tensor
    target: torch.Tensor
    points: torch.Tensor
    true: torch.Tensor
    predicted: torch.Tensor
    hits: torch.Tensor


def matches_picture(pairs: Sequence[Matches], within: str) -> Image.Image:
    """Draw pairs of images with a line from each keypoint to its match; `within` describes the distance of a hit."""
    tiles = [(fit_height(pair.source, HEIGHT), fit_height(pair.target, HEIGHT)) for pair in pairs]
    titles = [f"{int(pair.hits.sum())} of {len(pair.hits)} within {within}" for pair in pairs]
    figure = lay_pairs(tiles, titles, CAPTION)
    for axes, pair, (left, _) in zip(figure.axes, pairs, tiles, strict=True):
        right = torch.tensor([left.shape[1] + GAP, 0])
        starts = pair.points * HEIGHT / pair.source.shape[1]
        true, predicted = (points * HEIGHT / pair.target.shape[1] + right for points in (pair.true, pair.predicted))
        # White on black is visible on any image.
        for colour, width in (("black", 3.5), ("white", 1.5)):
            axes.plot(*true.T, "o", markersize=9, markerfacecolor="none", color=colour, markeredgewidth=width)
        for start, end, hit in zip(starts.tolist(), predicted.tolist(), pair.hits.tolist(), strict=True):
            colour = RIGHT if hit else WRONG
            axes.plot(
                *zip(start, end, strict=True), "-o", color=colour, linewidth=1.5, markersize=6, markeredgecolor="white"
            )
    return to_image(figure)
