"""Pictures of tracking: video frames with the tracked objects."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from .classes import overlay
from .style import PALE, spell, to_image, write
from .tiles import GAP, fit_image, fit_map, lay_tiles


PANEL_WIDTH = 360


def frame_picture(
    image: torch.Tensor, true: np.ndarray, predicted: Mapping[str, np.ndarray], caption: str
) -> Image.Image:
    """Draw a frame (uint8 [3,H,W]) with an overlay of each map of objects [H,W]; true objects have a white outline."""
    size = (round(image.shape[1] * PANEL_WIDTH / image.shape[2]), PANEL_WIDTH)
    ground, true = fit_image(image, size), fit_map(true, size)
    tiles = [overlay(ground, fit_map(labels, size)) for labels in predicted.values()]
    figure = lay_tiles([tiles], [spell(name) for name in predicted], below=24)
    # An object that covers the whole frame has no outline.
    outlines = [true == number for number in set(true.flat) - {0} if (true != number).any()]
    centres = [np.arange(length) + 0.5 for length in size[::-1]]
    for axes in figure.axes:
        for inside in outlines:
            axes.contour(*centres, inside, levels=[0.5], colors="white", linewidths=1.5)
    write(figure, caption, GAP, figure.bbox.height - 14, colour=PALE)
    return to_image(figure)
