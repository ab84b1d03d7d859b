"""What pictures share: exact pixels, names as they are, and Matplotlib only while something is drawn."""

import sys

import numpy as np
import pytest

from dinov3_hf.visualization.style import (
    COLOURS,
    Legend,
    add_axes,
    new_figure,
    series_colours,
    show,
    spell,
    text_width,
    to_image,
    write,
)

from ..processes import run_processes


@pytest.mark.parametrize("size", [(29, 57), (113, 201), (1000, 1302)])
def test_pictures_have_the_size_asked_for_and_pixels_stay(size):
    image = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    drawing = new_figure(*size)
    show(add_axes(drawing, 7, 11, 12, 20), image)
    drawn = np.asarray(to_image(drawing))
    assert drawn.shape == (size[1], size[0], 3)
    assert np.array_equal(drawn[11:31, 7:19], image)
    drawn = drawn.copy()
    drawn[11:31, 7:19] = 255
    assert (drawn == 255).all()


def test_names_are_no_formulas():
    formula, words = "$\\frac$", "plain"
    drawing = new_figure(120, 40)
    write(drawing, formula, 10, 20)
    ink = np.argwhere((np.asarray(to_image(drawing)) < 128).all(2))
    assert ink[:, 1].min() >= 10 and np.ptp(ink[:, 1]) == pytest.approx(text_width(formula), abs=3)
    assert text_width(words * 3) == pytest.approx(3 * text_width(words), rel=0.05)


def test_the_model_and_its_baselines_keep_their_colours():
    found = series_colours(["chance", "model", "run a", "run b"])
    assert found["chance"] == COLOURS["chance"] and found["model"] == COLOURS["model"]
    assert len(set(found.values())) == 4
    assert spell("raw_pixels") == "raw pixels"


def test_legends_break_into_lines_and_show_their_colours():
    entries = [(f"class {number}", colour) for number, colour in enumerate(["#ff0000", "#00ff00", "#0000ff"])]
    wide, narrow = Legend(entries, 1000), Legend(entries, 100)
    assert (wide.height, narrow.height) == (22, 66)
    drawing = new_figure(200, 100)
    narrow.draw(drawing, 10, 20)
    drawn = np.asarray(to_image(drawing))
    for line, colour in enumerate(np.eye(3, dtype=int) * 255):
        rows, columns = np.nonzero((drawn == colour).all(2))
        assert (rows.mean(), columns.mean()) == pytest.approx((20 + 22 * line + 10.5, 16.5), abs=1)


def import_pictures(rank, file):
    from dinov3_hf.finetuning import depth  # noqa: F401
    from dinov3_hf.visualization import (  # noqa: F401
        answers,
        boxes,
        charts,
        classes,
        confusion,
        depths,
        features,
        heat,
        matches,
        report,
        tiles,
        tracks,
    )

    before = "matplotlib" in sys.modules
    charts.curve_picture("a", {"model": [(1, 2), (2, 3)]}, "x")
    file.write_text(f"{before} {'matplotlib' in sys.modules} {'matplotlib.pyplot' in sys.modules}")


def test_matplotlib_comes_with_the_first_picture_and_pyplot_never(tmp_path):
    run_processes(import_pictures, tmp_path / "seen.txt", world=1)
    assert (tmp_path / "seen.txt").read_text() == "False True False"
