"""The look that pictures of results share: Matplotlib figures laid out in pixels from the top left, colours and texts."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


# At 72 dots an inch Matplotlib's points, the unit of its letters and lines, are pixels.
DPI = 72
INK, PALE, LINE, EDGE = "#1b1f24", "#5b6570", "#dfe3e8", "#9aa3ad"
RIGHT, WRONG, FOUND = "#16a34a", "#e0382b", "#f97316"
COLOURS = {"model": "#2563eb", "random_init": "#98a2ae", "raw_pixels": "#e0a03c", "chance": "#5b6570"}
# Of series that are none of these.
SERIES = ("#2563eb", "#d9660b", "#0b8f6a", "#8b3fd6", "#c22f5b")
TITLE, TEXT, SMALL = 15, 13, 12


def series_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name: its own where it has one, else the next of the series."""
    return {name: COLOURS.get(name, SERIES[index % len(SERIES)]) for index, name in enumerate(names)}


def spell(name: str) -> str:
    """Write a key as words: "raw_pixels" as "raw pixels"."""
    return name.replace("_", " ")


def new_figure(width: int, height: int):
    """Return an empty white Matplotlib figure of so many pixels; no window or global state takes part."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure, left: float, top: float, width: float, height: float):
    """Add axes over a rectangle (pixels) of a figure, without ticks and frame, their data in pixels from its top left."""
    full_width, full_height = figure.bbox.size
    place = (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(place, xlim=(0, width), ylim=(height, 0), xticks=(), yticks=())
    axes.spines[:].set_visible(False)
    return axes


def show(axes, image: np.ndarray, left: float = 0) -> None:
    """Draw an image [h,w,3] (uint8) into axes of `add_axes`, pixel by pixel, `left` pixels from their edge."""
    height, width = image.shape[:2]
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(image, extent=(left, left + width, height, 0), aspect="auto", interpolation="nearest")
    axes.set(xlim=limits[0], ylim=limits[1])


def write(figure, text: str, x: float, y: float, size: float = TEXT, colour: str = INK, **style) -> None:
    """Write at a place in pixels, from there to the right and around its height unless `style` (ha, va) says otherwise."""
    width, height = figure.bbox.size
    style = {"va": "center_baseline", "ha": "left", **style}
    # Names are shown as they are: a dollar sign starts no formula.
    figure.text(x / width, 1 - y / height, text, size=size, color=colour, parse_math=False, **style)


def text_width(text: str, size: float = TEXT) -> float:
    """Return the width in pixels of a text."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    return RendererAgg(1, 1, DPI).get_text_width_height_descent(text, FontProperties(size=size), False)[0]


class Legend:
    """Names alongside squares of their colours, in lines of at most `width` pixels; `height` is that of all lines."""

    def __init__(self, entries: Sequence[tuple[str, object]], width: float):
        self.places, left, top = [], 0, 0
        for name, colour in entries:
            length = 22 + text_width(name, SMALL) + 18
            if left and left + length > width:
                left, top = 0, top + 22
            self.places.append((name, colour, left, top))
            left += length
        self.height = top + 22 if entries else 0

    def draw(self, figure, left: float, top: float) -> None:
        """Draw it at a place of a figure."""
        from matplotlib.patches import Rectangle

        for name, colour, x, y in self.places:
            # Without a transform a patch is placed in pixels, from the bottom up.
            corner = (left + x, figure.bbox.height - top - y - 18)
            figure.add_artist(Rectangle(corner, 14, 14, facecolor=colour, edgecolor=EDGE, linewidth=1, transform=None))
            write(figure, name, left + x + 22, top + y + 11, SMALL)


def draw_scale(figure, colours: np.ndarray, ends: tuple[str, str], left: float, top: float) -> float:
    """Draw colours [N,3] (uint8) as a bar between its ends' names, 22 pixels high; returns where it ends in pixels."""
    start = round(left + text_width(ends[0], SMALL) + 8)
    write(figure, ends[0], left, top + 11, SMALL)
    show(add_axes(figure, start, top + 4, len(colours), 14), colours[None].repeat(14, axis=0))
    write(figure, ends[1], start + len(colours) + 8, top + 11, SMALL)
    return start + len(colours) + 8 + text_width(ends[1], SMALL)


def to_image(figure) -> Image.Image:
    """Draw a figure as an RGB image."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
