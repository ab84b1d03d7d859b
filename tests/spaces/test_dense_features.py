"""The Space of dense features in a browser: an upload, clicks at known places, the slider, examples, a wrong file."""

import re

import numpy as np
import pytest
from PIL import Image

from .pictures import picture_on


# Wide and tall ones are letterboxed on the page, in different ways at the two widths.
SIZES = {"square": (600, 600), "wide": (1000, 300), "tall": (200, 700)}


@pytest.fixture
def page(tab, serve):
    tab.goto(serve("dense_features"))
    tab.wait_for_selector("#similar img")
    return tab


@pytest.mark.parametrize("window", [390], indirect=True)
def test_it_opens_on_a_telephone(page):
    """Afterwards `tab` checks that nothing is wider than the window; what it does when used is slow at this width."""
    assert page.viewport_size["width"] == 390


def chequered(size):
    """Noise in which no two patches are alike."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def upload(page, path):
    page.set_input_files("#image input[type=file]", path)


def sentence(page):
    return page.inner_text("#text .prose")


def read(page, change):
    """Return what the sentence under the pictures says after a change."""
    before = sentence(page)
    change()
    page.wait_for_function("before => document.querySelector('#text .prose').innerText != before", arg=before)
    row, rows, column, columns = map(int, re.findall(r"\d+", sentence(page))[:4])
    return (row, column), (rows, columns)


def click(page, field, x, y):
    """Click at a share of the picture's own width and height, whatever frame surrounds it."""
    _, box, (width, height) = picture_on(page, f"#{field}")
    # Small pictures are not enlarged.
    scale = min(box["width"] / width, box["height"] / height, 1)
    left, top = box["x"] + (box["width"] - width * scale) / 2, box["y"] + (box["height"] - height * scale) / 2
    page.mouse.click(left + x * width * scale, top + y * height * scale)


@pytest.mark.parametrize("shape", ["wide", *(pytest.param(x, marks=pytest.mark.slow) for x in ("square", "tall"))])
def test_clicks_hit_the_patch_under_them(shape, page, tmp_path):
    size = SIZES[shape]
    chequered(size).save(tmp_path / "image.png")
    _, grid = read(page, lambda: upload(page, tmp_path / "image.png"))
    assert grid == tuple(max(1, round(32 * side / max(size))) for side in reversed(size))
    for field, x, y in (("image", 0.37, 0.74), ("image", 0.86, 0.23), ("pca", 0.15, 0.43), ("similar", 0.64, 0.95)):
        place, _ = read(page, lambda field=field, x=x, y=y: click(page, field, x, y))
        assert place == (1 + int(y * grid[0]), 1 + int(x * grid[1]))


@pytest.mark.parametrize("window", [1280], indirect=True)
def test_resolution_changes_the_grid_and_keeps_the_place(page):
    read(page, lambda: click(page, "image", 0.3, 0.2))
    number = page.locator("#patches input[type=number]")

    def refine():
        number.fill("64")
        number.press("Enter")

    place, grid = read(page, refine)
    assert grid == (64, 64) and place == (1 + int(0.2 * 64), 1 + int(0.3 * 64))


@pytest.mark.parametrize("window", [1280], indirect=True)
def test_examples_are_the_same_on_every_visit(page):
    first = sentence(page)
    read(page, lambda: page.locator("button.gallery-item").nth(1).click())
    read(page, lambda: page.locator("button.gallery-item").nth(0).click())
    assert sentence(page) == first


def test_a_wrong_file_gets_a_sentence_and_the_page_goes_on(page, tmp_path):
    chequered((64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:4000])
    upload(page, tmp_path / "cut.png")
    page.wait_for_selector("text=This image is damaged or cut short")
    page.wait_for_selector("#image img", state="detached")
    chequered((64, 32)).save(tmp_path / "whole.png")
    upload(page, tmp_path / "whole.png")
    page.wait_for_function("document.querySelector('#text .prose').innerText.includes('of 16, column')")
