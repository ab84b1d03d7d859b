"""The Space of segmentation by words in a browser: words typed, known and unknown, the threshold, wrong texts."""

import pytest
from PIL import Image


@pytest.fixture
def page(tab, serve):
    tab.goto(serve("open_vocabulary_segmentation"))
    tab.wait_for_selector("#masks figcaption")
    return tab


@pytest.mark.parametrize("window", [390], indirect=True)
def test_it_opens_on_a_telephone(page):
    """Afterwards `tab` checks that nothing is wider than the window; what it does when used is slow at this width."""
    assert page.viewport_size["width"] == 390


def captions(page):
    return page.locator("#masks figcaption").all_inner_texts()


def after(page, change, place="#message .prose"):
    """Wait until a change shows."""
    before = page.locator(place).first.inner_html()
    change()
    page.wait_for_function("([place, html]) => document.querySelector(place)?.innerHTML != html", arg=[place, before])


def type_words(page, words):
    page.fill("#words textarea, #words input", words)
    page.click("#segment")


def test_words_typed_are_found_and_unknown_ones_are_named(page):
    after(page, lambda: type_words(page, "house, tree, house, Unicorn"))
    assert "of 3 words found" in page.inner_text("#message")
    assert "Words the model does not know: unicorn." in page.inner_text("#message")
    assert {text.split(":")[0] for text in captions(page)} <= {"house", "tree", "Unicorn"} and captions(page)
    after(page, lambda: type_words(page, "house, tree"))
    assert "does not know" not in page.inner_text("#message")


def test_threshold_takes_pixels_away_from_words(page):
    def total():
        return sum(int(text.split(":")[1].strip(" %")) for text in captions(page))

    def set_threshold(value):
        number = page.locator("#threshold input[type=number]")
        number.fill(str(value))
        number.press("Enter")

    totals = [total()]
    for threshold in (0.9, 0.0):
        after(page, lambda threshold=threshold: set_threshold(threshold), "#masks .tiles")
        totals.append(total())
    assert totals[1] < totals[0] < totals[2]
    # Percents of the words are rounded one by one.
    assert totals[2] == pytest.approx(99, abs=3)


@pytest.mark.parametrize("window", [1280], indirect=True)
def test_what_is_typed_is_never_markup(page):
    after(page, lambda: type_words(page, "tree, <img src=x onerror=alert(1)>, [a](http://127.0.0.1:1)"))
    assert page.locator("#masks img[src=x], #message img, #message a").count() == 0


@pytest.mark.parametrize("window", [1280], indirect=True)
def test_texts_that_cannot_be_used_get_a_sentence(page):
    for words, sentence in (
        (" , ;", "Type at least one word."),
        (", ".join(map(str, range(40))), "These are 40 words or phrases: at most 32 are accepted."),
        ("word " * 10_000, "This text is too long: at most 32 words or phrases are accepted."),
    ):
        type_words(page, words)
        page.wait_for_selector(f"text={sentence}")


@pytest.mark.parametrize("window", [1280], indirect=True)
def test_an_upload_is_segmented_and_a_wrong_one_clears_the_page(page, tmp_path):
    Image.new("RGB", (90, 60), "red").save(tmp_path / "red.png")
    after(page, lambda: page.set_input_files("#image input[type=file]", tmp_path / "red.png"), "#message .prose")
    assert page.locator("#result img").evaluate("image => image.naturalWidth / image.naturalHeight") == 1.5
    (tmp_path / "notes.png").write_text("no image")
    page.set_input_files("#image input[type=file]", tmp_path / "notes.png")
    page.wait_for_selector("text=This file is no image we can read")
    page.wait_for_selector("#result img", state="detached")
    assert page.locator("#image img").count() == 0
    type_words(page, "tree")
    page.wait_for_selector("text=Choose an image first.")
