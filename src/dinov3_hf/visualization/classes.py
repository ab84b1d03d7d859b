"""Pictures of results: confusion matrices, and masks laid over images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont


# Classes beyond these take the colours again.
PALETTE = np.array(
    [(0, 0, 0), (230, 80, 60), (60, 130, 230), (70, 180, 90), (240, 190, 50), (150, 90, 210), (60, 190, 200)]
    + [(240, 130, 180), (150, 110, 70), (150, 160, 60), (110, 120, 140), (250, 140, 60), (110, 60, 90)],
    dtype=np.uint8,
)


def class_colours(labels: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Colour class indices [H,W] as uint8 RGB [H,W,3]; class 0 is black."""
    return PALETTE[np.where(labels == 0, 0, 1 + (labels - 1) % (len(PALETTE) - 1))]


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Lay classes [H,W] over a uint8 image [H,W,3]; class 0 leaves the image as it is."""
    mixed = (1 - opacity) * image + opacity * class_colours(labels)
    return np.where((labels == 0)[..., None], image, mixed).round().astype(np.uint8)


def confusion_picture(counts: torch.Tensor, names: Sequence[str], max_classes: int = 50) -> Image.Image:
    """Draw the shares of each class's images that were given each class, of counts [K,K]: rows are true, columns predicted.

    Of more than `max_classes` classes, those of the most images are drawn.
    """
    counts = counts.double()
    chosen = counts.sum(1).topk(min(max_classes, len(names))).indices.sort().values
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1))[chosen][:, chosen].numpy()
    names = [names[index] for index in chosen.tolist()]
    cell = max(12, min(48, 640 // len(names)))
    font, small = ImageFont.load_default(max(10, min(14, cell - 2))), ImageFont.load_default(max(9, cell // 3))
    label = 16 + int(max(font.getlength(name) for name in names))
    side = cell * len(names)
    picture = Image.new("RGB", (label + side + 12, label + side + 34), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((label, 6), "predicted class (columns) of each true class (rows), share", fill="#5b6570", font=font)
    top = 28
    for row, name in enumerate(names):
        draw.text((label - 8, top + row * cell + cell // 2), name, fill="#1b1f24", font=font, anchor="rm")
        for column, share in enumerate(shares[row]):
            place = (label + column * cell, top + row * cell)
            colour = tuple(round(255 + share * (value - 255)) for value in (37, 99, 235))
            draw.rectangle((*place, place[0] + cell - 1, place[1] + cell - 1), fill=colour, outline="#dfe3e8")
            if cell >= 30 and share >= 0.005:
                ink = "white" if share > 0.5 else "#1b1f24"
                centre = (place[0] + cell // 2, place[1] + cell // 2)
                draw.text(centre, f"{100 * share:.0f}", fill=ink, font=small, anchor="mm")
    for column, name in enumerate(names):
        # Names of columns stand upright under them.
        strip = Image.new("RGB", (label, cell), "white")
        ImageDraw.Draw(strip).text((label - 8, cell // 2), name, fill="#1b1f24", font=font, anchor="rm")
        picture.paste(strip.rotate(90, expand=True), (label + column * cell, top + side))
    return picture
