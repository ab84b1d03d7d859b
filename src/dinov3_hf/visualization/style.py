"""Shared style of result pictures: Matplotlib figures laid out in pixels from the top left, colours and texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Matplotlib measures text and lines in points of 1/72 inch: at 72 dots per inch they are pixels.
DPI = 72
INK, PALE, LINE, EDGE = "#1b1f24", "#5b6570", "#dfe3e8", "#9aa3ad"
RIGHT, WRONG, FOUND = "#16a34a", "#e0382b", "#f97316"
COLOURS = {"model": "#2563eb", "random_init": "#98a2ae", "raw_pixels": "#e0a03c", "chance": "#5b6570"}
# Colours of series with other names.
SERIES = ("#2563eb", "#d9660b", "#0b8f6a", "#8b3fd6", "#c22f5b")
TITLE, TEXT, SMALL = 15, 13, 12


def series_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name: its fixed one if it has one, else the next of `SERIES`."""
    return {name: COLOURS.get(name, SERIES[index % len(SERIES)]) for index, name in enumerate(names)}


def spell(name: str) -> str:
    """Write a key as words: "raw_pixels" becomes "raw pixels"."""
    return name.replace("_", " ")


def new_figure(width: int, height: int) -> "Figure":
    """Return an empty white Matplotlib figure of this size in pixels, without any window or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add axes without ticks and frame over a rectangle of a figure (in pixels).

    Their data coordinates are pixels from the top left of the rectangle.
    """
    full_width, full_height = figure.bbox.size
    place = (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(place, xlim=(0, width), ylim=(height, 0), xticks=(), yticks=())
    axes.spines[:].set_visible(False)
    return axes


def show(axes: "Axes", image: np.ndarray, left: float = 0) -> None:
    """Draw an image [h,w,3] (uint8) at its size into axes from `add_axes`, `left` pixels from their left edge."""
    height, width = image.shape[:2]
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(image, extent=(left, left + width, height, 0), aspect="auto", interpolation="nearest")
    axes.set(xlim=limits[0], ylim=limits[1])


def write(
    figure: "Figure", text: str, x: float, y: float, size: float = TEXT, colour: str = INK, **style: Any
) -> None:
    """Write text at (x, y) in pixels, by default left-aligned and vertically centred; `style` may change ha and va."""
    width, height = figure.bbox.size
    style = {"va": "center_baseline", "ha": "left", **style}
    # Names are shown verbatim: a dollar sign does not start a formula.
    figure.text(x / width, 1 - y / height, text, size=size, color=colour, parse_math=False, **style)


def text_width(text: str, size: float = TEXT) -> float:
    """Return the width of a text in pixels."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    return RendererAgg(1, 1, DPI).get_text_width_height_descent(text, FontProperties(size=size), False)[0]


class Legend:
    """Squares of colours with their names, in lines of at most `width` pixels; `height` is that of all lines."""

    def __init__(self, entries: Sequence[tuple[str, object]], width: float):
        self.places: list[tuple[str, object, float, int]] = []
        left, top = 0.0, 0
        for name, colour in entries:
            length = 22 + text_width(name, SMALL) + 18
            if left and left + length > width:
                left, top = 0, top + 22
            self.places.append((name, colour, left, top))
            left += length
        self.height = top + 22 if entries else 0

    def draw(self, figure: "Figure", left: float, top: float) -> None:
        """Draw the legend at a position in a figure, in pixels."""
        from matplotlib.patches import Rectangle

        for name, colour, x, y in self.places:
            # Without a transform the coordinates of a patch are pixels from the bottom left.
            corner = (left + x, figure.bbox.height - top - y - 18)
            figure.add_artist(Rectangle(corner, 14, 14, facecolor=colour, edgecolor=EDGE, linewidth=1, transform=None))
            write(figure, name, left + x + 22, top + y + 11, SMALL)


def draw_scale(figure: "Figure", colours: np.ndarray, ends: tuple[str, str], left: float, top: float) -> float:
    """Draw a colour bar [N,3] (uint8) between the labels of its ends, 22 pixels high; returns its right end."""
    start = round(left + text_width(ends[0], SMALL) + 8)
    write(figure, ends[0], left, top + 11, SMALL)
    show(add_axes(figure, start, top + 4, len(colours), 14), colours[None].repeat(14, axis=0))
    write(figure, ends[1], start + len(colours) + 8, top + 11, SMALL)
    return start + len(colours) + 8 + text_width(ends[1], SMALL)


def to_image(figure: "Figure") -> Image.Image:
    """Render a figure as an RGB image."""
    canvas: Any = figure.canvas  # Agg's, from `new_figure`; Matplotlib types it as any canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
