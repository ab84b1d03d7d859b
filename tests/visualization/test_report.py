"""The report: loads nothing, holds what it was given, and is honest about what lost."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dinov3_hf.visualization.report import Comparison, Curve, Pictures, compare, line_chart, verdict, write_report


RESULT = SimpleNamespace(
    task="knn",
    protocol={"num_train": 20, "num_test": 8},
    metrics=[
        {"metric": "top-1", "k": 10, "model": 0.4, "random_init": 0.2, "raw_pixels": 0.5, "chance": 0.1},
        {"metric": "top-1", "k": 20, "model": 0.3, "chance": 0.0},
    ],
)


def test_comparisons_hold_the_metrics():
    first, second = compare(RESULT)
    assert first.title == "k-NN on images (k=10): top-1"
    assert first.values == {"trained": 0.4, "random init": 0.2, "raw pixels": 0.5, "chance": 0.1}
    assert second.values == {"trained": 0.3, "chance": 0.0}


def test_verdict_says_what_lost():
    first, second = compare(RESULT)
    assert verdict(first) == (
        "k-NN on images (k=10): top-1 is 0.400, above random init (0.200, 2.00 times), below raw pixels (0.500, "
        "0.80 times) and above chance (0.100, 4.00 times)."
    )
    assert verdict(second) == "k-NN on images (k=20): top-1 is 0.300, above chance (0.000)."


def test_a_baseline_inside_the_interval_is_about_equal():
    (first,) = compare(
        SimpleNamespace(**vars(RESULT) | {"metrics": [{**RESULT.metrics[0], "interval": [0.15, 0.45]}]})
    )
    assert verdict(first) == (
        "k-NN on images (k=10): top-1 is 0.400 (0.150 to 0.450), about equal to random init (0.200, 2.00 times), "
        "below raw pixels (0.500, 0.80 times) and above chance (0.100, 4.00 times)."
    )


def test_report_is_self_contained_and_complete(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = write_report(
        tmp_path / "new" / "report.html",
        title="A <run>",
        summary="Better & worse",
        curves=[Curve("Losses", {"image": [(10, 4.0), (20, 3.0)], "patch": [(10, 4.0), (20, None)]})],
        tables=compare(RESULT),
        pictures=[Pictures("Patches", ["input", "after"], [[picture, picture[::-1].copy()]], "PCA")],
        notes={"Go on": "dinov3 pretrain --data <images>", "Settings": {"steps": 600, "lr": 0.002}},
    )
    page = path.read_text()
    assert not re.search(
        r"https?:|//[a-z]|<script|<link|@import|url\(", re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    )
    for text in (
        "A &lt;run&gt;",
        "Better &amp; worse",
        "0.400",
        "2.00×",
        "0.80×",
        "--data &lt;images&gt;",
        "<dd>600</dd>",
    ):
        assert text in page
    images = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([\w+/=]+)", page)]
    assert [np.array_equal(np.asarray(Image.open(io.BytesIO(found))), picture) for found in images] == [True, False]
    assert "prefers-color-scheme:dark" in page and 'name="viewport"' in page


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    tree = ElementTree.fromstring(re.search(r"<svg.*?</svg>", svg)[0])
    lines = [element.get("points") for element in tree if element.tag == "polyline"]
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


@pytest.mark.parametrize("log_y, middle", [(False, 55.0), (True, 10.0)])
def test_curve_is_drawn_to_scale(log_y, middle):
    series = {"a": [(0, 1.0), (50, middle), (100, 100.0)] if log_y else [(0, 10.0), (50, middle), (100, 100.0)]}
    ((first, between, last),) = points_of(line_chart(Curve("c", series, log_y=log_y)))
    assert between[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.1)
    assert between[1] == pytest.approx((first[1] + last[1]) / 2, abs=0.1)
    assert first[0] < last[0] and first[1] > last[1]


def test_curve_leaves_out_what_cannot_be_drawn():
    nan = float("nan")
    series = {"a": [(0, 1.0), (1, None), (2, nan), (3, 2.0)], "b": [(0, None)]}
    svg = line_chart(Curve("c", series))
    assert [len(line) for line in points_of(svg)] == [2]
    assert len(points_of(line_chart(Curve("c", {"a": [(0, 0.0), (1, 1.0), (2, 3.0)]}, log_y=True)))[0]) == 2
    assert "no points" in line_chart(Curve("c", {"b": [(0, None)]}))


@pytest.mark.parametrize("low, high", [(0.5, 0.5), (0, 0), (-3, 1e6), (1e-7, 3e-7)])
def test_any_range_has_an_axis(low, high):
    ((first, last),) = points_of(line_chart(Curve("c", {"a": [(0, low), (1, high)]})))
    assert all(0 <= value <= 560 for value in (*first, *last))


def test_bars_are_in_proportion(tmp_path):
    page = write_report(
        tmp_path / "r.html", title="t", summary="s", tables=[Comparison("c", {"a": 0.1, "b": 0.4})]
    ).read_text()
    assert re.findall(r"width:([\d.]+)%", page.split("</style>")[1]) == ["25.0", "100.0"]
