"""Charts are drawn to scale: found again in their pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from dinov3_hf.visualization.charts import HEIGHT, MARGINS, WIDTH, bars_picture, curve_picture, histogram_picture
from dinov3_hf.visualization.style import COLOURS, SERIES


def coloured(picture, colour, top=MARGINS[2]) -> np.ndarray:
    """Return where [N,2] (row, column) a picture has a colour, below the legend."""
    wanted = np.round(255 * np.array(to_rgb(colour)))
    places = np.argwhere((np.asarray(picture) == wanted).all(2))
    return places[places[:, 0] >= top]


@pytest.mark.parametrize(
    "points, scales",
    [
        ([(0, 10.0), (50, 55.0), (100, 100.0)], {}),
        ([(0, 1.0), (50, 10.0), (100, 100.0)], {"log_y": True}),
        ([(1, 0.1), (10, 0.2), (100, 0.3)], {"log_x": True}),
    ],
)
def test_curves_are_straight_where_their_scale_says_so(points, scales):
    picture = curve_picture("c", {"model": points}, "step", **scales)
    assert picture.size == (WIDTH, HEIGHT)
    places = coloured(picture, COLOURS["model"])
    rows, columns = places.T
    slope, offset = np.polyfit(columns, rows, 1)
    assert slope < -0.3 and np.abs(rows - slope * columns - offset).max() < 6
    # The points, drawn as dots, are at the ends and halfway.
    columns_of_dots = [column for column in set(columns) if (columns == column).sum() >= 5]
    middle = (columns.min() + columns.max()) / 2
    assert any(abs(column - middle) <= 2 for column in columns_of_dots)


def test_points_without_a_value_leave_a_gap():
    values = [(0, 1.0), (1, None), (2, float("nan")), (3, 2.0)]
    columns = coloured(curve_picture("c", {"model": values}, "step"), COLOURS["model"])[:, 1]
    assert np.ptp(columns) > 500 and not ((columns > columns.min() + 10) & (columns < columns.max() - 10)).any()


def test_the_model_lies_above_its_baselines_and_chance_is_dashed():
    points = [(0, 0.5), (10, 0.5)]
    picture = curve_picture("c", {"model": points, "random_init": points, "raw_pixels": points}, "step")
    assert len(coloured(picture, COLOURS["model"])) > 1000
    assert len(coloured(picture, COLOURS["random_init"])) == len(coloured(picture, COLOURS["raw_pixels"])) == 0
    columns = np.unique(coloured(curve_picture("c", {"chance": points}, "step"), COLOURS["chance"], 100)[:, 1])
    line = curve_picture("c", {"chance": points}, "step").crop((100, 100, 700, HEIGHT - MARGINS[3] - 4))
    gaps = (~(np.asarray(line) == np.round(255 * np.array(to_rgb(COLOURS["chance"])))).all(2).any(0)).mean()
    assert len(columns) and 0.15 < gaps < 0.6


def test_histograms_are_to_scale_with_their_limit():
    values = np.repeat([1.025, 2.025], [100, 10])
    picture = histogram_picture("h", {"layer 1": values}, "norm", (3.0, "limit"), num_bins=66)
    rows, columns = coloured(picture, SERIES[0]).T
    bottom = HEIGHT - MARGINS[3]
    # 66 bins of 0.05 over the width: both bars are where their values are, as high as their logarithms.
    width = WIDTH - MARGINS[0] - MARGINS[1]
    tall, low = (
        bottom - rows[np.abs(columns - MARGINS[0] - width * value / 3.3) < 6].min() for value in (1.025, 2.025)
    )
    assert tall / low == pytest.approx(np.log(100 / 0.7) / np.log(10 / 0.7), rel=0.03)
    # A dashed line, dark in half of its length at least.
    limit = round(MARGINS[0] + width * 3 / 3.3)
    line = np.asarray(picture)[MARGINS[2] + 30 : bottom - 4, limit - 2 : limit + 3].max(2).min(1)
    assert 0.5 < (line < 200).mean() < 0.9


def test_bars_are_as_long_as_the_accuracies():
    def blue(share):
        return len(coloured(bars_picture("t", ["a (40)"], {"model": [(share, share, share)]}), COLOURS["model"]))

    assert blue(0) < 0.02 * blue(1)
    assert blue(0.5) == pytest.approx(0.5 * blue(1), rel=0.05)
    groups, values = [f"${number}" for number in range(30)], [(0.5, 0.2, 0.8)] * 30
    few, many = (bars_picture("t", groups[:count], {"model": values[:count]}) for count in (2, 30))
    assert few.width == pytest.approx(many.width, abs=20) and many.height > 5 * few.height


def test_intervals_reach_from_low_to_high():
    picture = bars_picture("t", ["a"], {"model": [(0.5, 0.25, 0.75)]})
    blue = coloured(picture, COLOURS["model"])
    left, length = blue[:, 1].min(), 2 * np.ptp(blue[:, 1])
    row = np.asarray(picture)[blue[:, 0].min() : blue[:, 0].max() + 1].max(2).min(0)
    inked = np.flatnonzero(row < 60) - left
    inked = inked[(inked > 3) & (inked < 0.79 * length)]
    assert (inked.min() / length, inked.max() / length) == pytest.approx((0.25, 0.75), abs=0.01)
