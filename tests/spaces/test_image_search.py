"""The Space of image search in a browser: words, images, what was found, collections of one's own, wrong files."""

import io
import re
import zipfile

import pytest
from PIL import Image

from dinov3_hf import tiny_checkpoint


COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


@pytest.fixture
def page(tab, serve):
    tab.goto(serve("image_search"))
    wait_for(tab, "150 images.")
    return tab


@pytest.mark.parametrize("window", [390], indirect=True)
def test_it_opens_on_a_telephone(page):
    """Afterwards `tab` checks that nothing is wider than the window; what it does when used is slow at this width."""
    assert page.viewport_size["width"] == 390


def wait_for(page, words):
    page.wait_for_function("words => document.querySelector('#text p')?.innerText.includes(words)", arg=words)


def ask(page, words):
    page.locator("#words textarea, #words input").fill(words)
    page.locator("#words textarea, #words input").press("Enter")


def cosines(page, count=9):
    """Return the numbers under the images found, when there are as many as expected."""
    page.wait_for_function("count => document.querySelectorAll('#found .caption-label').length == count", arg=count)
    return [float(number) for number in page.locator("#found .caption-label").all_inner_texts()]


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, "PNG")
    return buffer.getvalue()


def upload(page, button, files):
    with page.expect_file_chooser() as chooser:
        page.click(f"#{button}")
    chooser.value.set_files(files)


def test_words_find_images_the_most_similar_first(page):
    ask(page, "a red fish")
    wait_for(page, "Nearest to “a red fish” among 150 images.")
    found = cosines(page)
    assert found == sorted(found, reverse=True) and found[0] > 0.2


def test_unknown_words_are_named_and_no_words_refused(page):
    ask(page, "a purple zeppelin")
    wait_for(page, "Words the model does not know: zeppelin.")
    ask(page, " , ")
    page.wait_for_selector("text=Type at least one word.")


def test_an_image_that_was_found_is_nearest_to_itself(page):
    ask(page, "a green tree")
    wait_for(page, "“a green tree”")
    cosines(page)
    page.locator("#found button.thumbnail-item").nth(4).click()
    wait_for(page, "Nearest to the clicked image")
    page.wait_for_function("document.querySelector('#found .caption-label')?.innerText.trim() == '1.00'")
    page.wait_for_selector("#image img")


def test_examples_are_the_same_on_every_visit(page):
    def example(number):
        page.locator("button.gallery-item").nth(number).click()
        wait_for(page, "Nearest to the image")
        page.wait_for_selector("#image img")
        return cosines(page)

    first = example(0)
    page.reload()
    wait_for(page, "150 images.")
    assert example(0) == first and first[0] < 1


def test_an_archive_is_searched_and_deleted(page, tmp_path):
    from dinov3_hf.spaces.layout import UPLOADS

    with zipfile.ZipFile(tmp_path / "three.zip", "w") as archive:
        for name, colour in COLOURS.items():
            archive.writestr(f"folder/{name}.png", png(colour))
        archive.writestr("words.txt", "no image")
    upload(page, "mine", tmp_path / "three.zip")
    wait_for(page, "3 images; 1 of 4 files could not be read.")
    assert not list(UPLOADS.rglob("three.zip"))
    (tmp_path / "query.png").write_bytes(png(COLOURS["green"]))
    page.set_input_files("#image input[type=file]", tmp_path / "query.png")
    wait_for(page, "Nearest to the image among 3 images.")
    found = cosines(page, 3)
    assert found[0] == 1 and found[1] < 1
    page.click("#forget")
    wait_for(page, "150 images.")


def test_a_folder_and_several_files_are_searched(page, tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    upload(page, "folder", tmp_path)
    wait_for(page, "3 images.")
    upload(page, "mine", [tmp_path / "red.png", tmp_path / "blue.png"])
    wait_for(page, "2 images.")


def test_wrong_files_get_a_sentence_and_the_page_goes_on(page, tmp_path):
    (tmp_path / "words.png").write_text("no image at all")
    page.set_input_files("#image input[type=file]", tmp_path / "words.png")
    page.wait_for_selector("text=This file is no image we can read")
    upload(page, "mine", tmp_path / "words.png")
    page.wait_for_selector("text=There is no image here that can be read")
    ask(page, "a blue car")
    wait_for(page, "Nearest to “a blue car” among 150 images.")


def test_without_a_text_tower_the_words_say_why_they_are_off(tmp_path):
    pytest.importorskip("gradio")
    from dinov3_hf.spaces.image_search.app import build

    for name, colour in COLOURS.items():
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    page = build(tiny_checkpoint(), data=str(tmp_path))
    words = next(block for block in page.blocks.values() if block.elem_id == "words")
    assert not words.interactive and re.search("no text tower", words.placeholder)
