"""Pictures of confusion matrices."""

from collections.abc import Sequence

import torch
from PIL import Image

from .style import COLOURS, INK, LINE, PALE, SMALL, TEXT, add_axes, new_figure, text_width, to_image, write


TITLE = "% of each true class (row) given each class (column)"


def confusion_picture(counts: torch.Tensor, names: Sequence[str], max_classes: int = 50) -> Image.Image:
    """Draw a confusion matrix of counts [K,K] (rows are true classes, columns predicted), each row as percentages.

    If there are more than `max_classes` classes, those with the most images are drawn.
    """
    from matplotlib.colors import LinearSegmentedColormap

    counts = counts.double()
    chosen = counts.sum(1).topk(min(max_classes, len(names))).indices.sort().values
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1))[chosen][:, chosen].numpy()
    names, size = [_shorten(names[index]) for index in chosen.tolist()], len(chosen)
    cell = max(13, min(56, 680 // size))
    letters = min(TEXT, cell - 2)
    label, side, top = 36 + round(max(text_width(name, letters) for name in names)), cell * size, 44
    figure = new_figure(label + max(side, round(text_width(TITLE))) + 16, top + side + label)
    axes = add_axes(figure, label, top, side, side)
    blues = LinearSegmentedColormap.from_list("shares", ["white", COLOURS["model"]])
    axes.imshow(shares, cmap=blues, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    for draw in (axes.hlines, axes.vlines):
        draw([place - 0.5 for place in range(size + 1)], -0.5, size - 0.5, color=LINE, linewidth=1, clip_on=False)
    axes.set_xticks(range(size), names, rotation=90, parse_math=False)
    axes.set_yticks(range(size), names, parse_math=False)
    axes.tick_params(length=0, pad=6, labelsize=letters, labelcolor=INK)
    for row, column in zip(*(shares >= 0.005).nonzero(), strict=True) if cell >= 26 else ():
        share, ink = shares[row, column], "white" if shares[row, column] > 0.5 else INK
        axes.text(column, row, f"{100 * share:.0f}", color=ink, size=SMALL, ha="center", va="center_baseline")
    write(figure, TITLE, label, 22, TEXT, PALE)
    return to_image(figure)


def _shorten(name: str, length: int = 32) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
