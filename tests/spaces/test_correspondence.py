"""The Space of correspondence in a browser: clicks at known places, uploads, both views, examples, a wrong file."""

import re

import numpy as np
import pytest
from PIL import Image

from .pictures import picture_on


# Wide and tall ones are letterboxed on the page, in different ways at the two widths.
SIZES = {"square": (600, 600), "wide": (720, 250), "tall": (200, 700)}


@pytest.fixture
def page(tab, serve):
    tab.goto(serve("correspondence"))
    wait_for(tab, "cosine")
    for field in ("left", "right"):
        wait_for_size(tab, field, (512, 512))
    return tab


@pytest.mark.parametrize("window", [390], indirect=True)
def test_it_opens_on_a_telephone(page):
    """Afterwards `tab` checks that nothing is wider than the window; what it does when used is slow at this width."""
    assert page.viewport_size["width"] == 390


def wait_for(page, words):
    page.wait_for_function("words => document.querySelector('#text p')?.innerText.includes(words)", arg=words)


def read(page, change):
    """Return the place on the left, that on the right and their cosine, as the sentence says after a change."""
    before = page.inner_text("#text p")
    change()
    page.wait_for_function(
        "before => (text => text?.includes('cosine') && text != before)(document.querySelector('#text p')?.innerText)",
        arg=before,
    )
    x, y, to_x, to_y, cosine = map(float, re.findall(r"-?\d+(?:\.\d+)?", page.inner_text("#text p")))
    return (x, y), (to_x, to_y), cosine


def click(page, field, x, y):
    """Click at a share of the picture's own width and height, whatever frame surrounds it."""
    picture, box, (width, height) = picture_on(page, f"#{field}")
    scale = min(box["width"] / width, box["height"] / height)
    left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
    picture.click(position={"x": left + x * width * scale, "y": top + y * height * scale})


def upload(page, field, path):
    page.set_input_files(f"#{field} input[type=file]", path)


def wait_for_size(page, field, size):
    page.wait_for_function(
        """([field, size]) => (image => image?.naturalWidth == size[0] && image.naturalHeight == size[1])
            (document.querySelector(`#${field} img`))""",
        arg=[field, size],
    )


@pytest.mark.parametrize("shape", ["wide", *(pytest.param(x, marks=pytest.mark.slow) for x in ("square", "tall"))])
def test_a_place_is_found_at_itself_in_the_same_image(shape, page, tmp_path):
    size = SIZES[shape]
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    for field in ("left", "right"):
        read(page, lambda field=field: upload(page, field, tmp_path / "image.png"))
        wait_for_size(page, field, size)
    for x, y in ((0.3, 0.7), (0.9, 0.2), (0.12, 0.41)):
        place, match, cosine = read(page, lambda x=x, y=y: click(page, "left", x, y))
        # A pixel of a telephone's page is several of the image.
        assert place == pytest.approx((x * size[0], y * size[1]), abs=1 + max(size) / 140)
        assert match == pytest.approx(place, abs=2) and cosine > 0.99


def test_mutual_matches_and_back_by_a_click(page):
    page.get_by_label("Mutual matches").click()
    wait_for(page, "mutual matches")
    assert int(re.search(r"(\d+) mutual matches", page.inner_text("#text p")).group(1)) > 3
    read(page, lambda: click(page, "left", 0.4, 0.6))
    assert page.get_by_label("Clicked point").is_checked()


def test_resolution_keeps_the_place(page):
    place, match, _ = read(page, lambda: click(page, "left", 0.4, 0.6))

    def refine():
        page.locator("#patches input[type=number]").fill("48")
        page.locator("#patches input[type=number]").press("Enter")

    again, other, _ = read(page, refine)
    assert again == place and other != match


def test_examples_are_the_same_on_every_visit(page):
    first = page.inner_text("#text p")
    read(page, lambda: page.locator("button.gallery-item").nth(1).click())
    read(page, lambda: page.locator("button.gallery-item").nth(0).click())
    assert page.inner_text("#text p") == first


def test_a_wrong_file_gets_a_sentence_and_both_images_stay(page, tmp_path):
    (tmp_path / "words.png").write_text("no image at all")
    upload(page, "right", tmp_path / "words.png")
    page.wait_for_selector("text=This file is no image we can read")
    page.wait_for_selector("#right img")
    read(page, lambda: click(page, "left", 0.4, 0.6))
