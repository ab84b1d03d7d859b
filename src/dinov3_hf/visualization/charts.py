"""Charts of results: curves, histograms, and bars with confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .style import INK, LINE, PALE, SMALL, TEXT, TITLE, new_figure, series_colours, spell, text_width, to_image, write


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


WIDTH, HEIGHT = 760, 420
# Left, right, above and below the axes, in pixels.
MARGINS = (68, 24, 76, 56)


def curve_picture(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> Image.Image:
    """Draw series of (x, y) points as curves, "chance" as a dashed line; points without a finite y are skipped."""
    from matplotlib.ticker import LogLocator

    figure, axes = _chart(title, x_label)
    for number, (name, colour) in enumerate(series_colours(list(series)).items()):
        x, y = zip(*series[name], strict=True)
        style = {"linestyle": "--"} if name == "chance" else {"marker": "o", "markersize": 6}
        # The first series, the model, is drawn above the others.
        axes.plot(x, y, color=colour, linewidth=2, label=spell(name), zorder=3 - number / len(series), **style)
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=20))
    else:
        axes.set_xticks(sorted({x for points in series.values() for x, _ in points}))
    if log_y:
        axes.set_yscale("log")
        _plain_log_ticks(axes.yaxis)
    else:
        axes.locator_params(axis="y", nbins=6, steps=(1, 2, 5, 10))
    _legend(axes)
    return to_image(figure)


def histogram_picture(
    title: str, values: Mapping[str, np.ndarray], x_label: str, limit: tuple[float, str], num_bins: int = 60
) -> Image.Image:
    """Draw histograms of the numbers [N] of each name, with logarithmic counts.

    `limit` is a value and its name: it is marked by a line, and the bins extend from 0 to beyond it.
    """
    figure, axes = _chart(title, x_label)
    place, words = limit
    edges = np.linspace(0, max(1.1 * place, *(some.max() for some in values.values())), num_bins + 1)
    for name, colour in series_colours(list(values)).items():
        counts = np.histogram(values[name], edges)[0]
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.15)
        axes.stairs(counts, edges, color=colour, linewidth=2, label=spell(name))
    axes.axvline(place, color=PALE, linewidth=1.5, linestyle="--")
    axes.text(
        place, 0.98, f"{words} ", color=PALE, size=SMALL, ha="right", va="top", transform=axes.get_xaxis_transform()
    )
    axes.set(yscale="log", ylim=(0.7, None), xlim=(0, edges[-1]))
    _plain_log_ticks(axes.yaxis)
    _legend(axes)
    return to_image(figure)


def bars_picture(
    title: str, groups: Sequence[str], values: Mapping[str, Sequence[tuple[float, float, float]]]
) -> Image.Image:
    """Draw a bar on a scale from 0 to 1 for each group and name.

    `values` are for each name and group (value, low, high), where low and high are the ends of an interval.
    """
    bar, gap, width, top = 14, 12, 480, 72
    group_height = bar * len(values) + gap
    left, height = 32 + max(map(text_width, groups)), group_height * len(groups)
    figure, axes = _chart(title, "", round(left + width + 70), top + height + 44, (left, 70, top, 44))
    for number, (name, colour) in enumerate(series_colours(list(values)).items()):
        middles = group_height * np.arange(len(groups)) + gap / 2 + bar * (number + 0.5)
        lengths, low, high = np.array(values[name]).T
        axes.barh(middles, lengths, bar - 2, color=colour, label=spell(name))
        axes.errorbar(
            lengths, middles, xerr=(lengths - low, high - lengths), fmt="none", ecolor=INK, elinewidth=1, capsize=3
        )
        for middle, length, end in zip(middles, lengths, high, strict=True):
            place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center_baseline"}
            axes.annotate(f"{length:.3f}", (end, middle), color=PALE, size=SMALL, **place)
    axes.set(xlim=(0, 1), ylim=(height, 0), yticks=group_height * (np.arange(len(groups)) + 0.5))
    axes.set_yticklabels(groups, color=INK, size=TEXT, parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=LINE, linewidth=1, clip_on=False)
    axes.spines["left"].set_visible(True)
    axes.spines["bottom"].set_visible(False)
    _legend(axes)
    return to_image(figure)


def _chart(
    title: str,
    x_label: str,
    width: int = WIDTH,
    height: int = HEIGHT,
    margins: tuple[float, float, float, float] = MARGINS,
) -> tuple["Figure", "Axes"]:
    """Return a figure with a title, and its axes with horizontal grid lines; margins are left, right, top, bottom."""
    figure, (left, right, top, bottom) = new_figure(width, height), margins
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    write(figure, title, left, 24, TITLE)
    axes.set_xlabel(x_label, color=PALE, size=TEXT, labelpad=8)
    axes.tick_params(colors=PALE, labelsize=SMALL, length=0, pad=6, which="both")
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=PALE)
    axes.spines["left"].set_color(PALE)
    return figure, axes


def _plain_log_ticks(axis: "Axis") -> None:
    """Label the powers of ten without exponents, and on short axes also 2 and 5 times them."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _legend(axes: "Axes") -> None:
    """Draw the legend in one line between the title and the axes."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.5, "borderpad": 0, "frameon": False}
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles, names, ncols=len(names), fontsize=SMALL, labelcolor=PALE, handlelength=1.4, **place)
