"""The Space of video tracking in a browser: marks by clicks and boxes, tracking, stopping, uploads, wrong files."""

import re

import numpy as np
import pytest
from PIL import Image

from .pictures import picture_on


@pytest.fixture
def page(tab, serve):
    tab.goto(serve("video_tracking"))
    wait_for(tab, "#text p", "the mask covers")
    tab.wait_for_function("document.querySelector('#frame img')?.naturalWidth == 512")
    return tab


@pytest.mark.parametrize("window", [390], indirect=True)
def test_it_opens_on_a_telephone(page):
    """Afterwards `tab` checks that nothing is wider than the window; what it does when used is slow at this width."""
    assert page.viewport_size["width"] == 390


def wait_for(page, field, words):
    page.wait_for_function(
        "([field, words]) => document.querySelector(field)?.innerText.includes(words)", arg=[field, words]
    )


def share(page):
    """Return how much of the first frame the mask covers, in percent."""
    return int(re.search(r"covers (\d+)%", page.inner_text("#text p")).group(1))


def click(page, x, y):
    picture, box, _ = picture_on(page, "#frame")
    picture.click(position={"x": x * box["width"], "y": y * box["height"]})


def write_clip(path, num_frames, size=(160, 96)):
    """A red square that moves to the right over noise, at most 80 frames, as GIF."""
    ground = np.random.default_rng(0).integers(0, 90, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    ground = ground.repeat(8, axis=0).repeat(8, axis=1)
    frames = []
    for number in range(num_frames):
        frame = ground.copy()
        left = 16 + number * 80 // num_frames
        frame[32:64, left : left + 32] = (230, 30, 30)
        frames.append(Image.fromarray(frame))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def upload(page, path):
    with page.expect_file_chooser() as chooser:
        page.click("#upload")
    chooser.value.set_files(path)


def shown(page):
    """Return the duration in seconds and the size of the video that the browser plays."""
    page.wait_for_function("document.querySelector('#video video')?.readyState >= 2")
    return page.evaluate("(v => [v.duration, v.videoWidth, v.videoHeight])(document.querySelector('#video video'))")


def test_an_example_is_tracked_to_a_video_that_plays(page):
    page.click("#start")
    wait_for(page, "#progress p", "Tracked through 8 frames")
    assert shown(page) == [pytest.approx(2, abs=0.1), 512, 512]
    page.wait_for_function("document.querySelector('#video video').currentTime > 0")


def test_two_corners_make_a_box_of_their_size(page):
    page.get_by_label("Box corners").click()
    click(page, 0.7, 0.8)
    wait_for(page, "#text p", "no mask yet")
    click(page, 0.2, 0.4)
    wait_for(page, "#text p", "the mask covers")
    assert share(page) == pytest.approx(20, abs=1)


def test_clicks_add_and_take_away_and_are_reset(page):
    def change(kind):
        before = page.inner_text("#text p")
        page.get_by_label(kind, exact=True).click()
        click(page, 0.1, 0.9)
        page.wait_for_function("before => document.querySelector('#text p').innerText != before", arg=before)
        return share(page)

    # Opened with a click on an object; this one is on the ground.
    opened = share(page)
    more = change("Object")
    assert more > opened + 5 and change("Background") < more
    page.click("#clear")
    wait_for(page, "#text p", "no mask yet")
    page.click("#start")
    page.wait_for_selector("text=Click an object in the first frame")


def test_an_uploaded_clip_is_tracked_and_deleted(page, tmp_path):
    from dinov3_hf.spaces.layout import UPLOADS

    write_clip(tmp_path / "moving.gif", 12)
    upload(page, tmp_path / "moving.gif")
    wait_for(page, "#text p", "12 frames; no mask yet")
    assert not list(UPLOADS.rglob("moving.gif"))
    page.wait_for_function("document.querySelector('#frame img')?.naturalWidth == 160")
    click(page, 32 / 160, 48 / 96)
    wait_for(page, "#text p", "the mask covers")
    page.click("#start")
    wait_for(page, "#progress p", "Tracked through 12 frames; visible in 12")
    assert shown(page) == [pytest.approx(1.2, abs=0.2), 160, 96]


def test_tracking_stops_when_asked_and_begins_again(page, tmp_path):
    write_clip(tmp_path / "long.gif", 80, size=(512, 512))
    upload(page, tmp_path / "long.gif")
    wait_for(page, "#text p", "80 frames")
    click(page, 0.1, 0.1)
    wait_for(page, "#text p", "the mask covers")
    page.click("#start")
    wait_for(page, "#progress p", " of 80")
    page.click("#stop")
    wait_for(page, "#progress p", "Stopped.")
    # The server is free again at once: an example of eight frames does not wait for the others.
    page.locator("button.gallery-item").nth(1).click()
    wait_for(page, "#text p", "8 frames; the mask covers")
    page.click("#start")
    wait_for(page, "#progress p", "Tracked through 8 frames")


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("words.mp4", b"no clip at all", "This clip is damaged or of a kind we cannot read"),
        ("empty.gif", b"", "This file is empty"),
        ("still.png", None, "This clip has fewer than two frames"),
    ],
)
def test_a_wrong_file_gets_a_sentence_and_the_clip_stays(name, data, message, page, tmp_path):
    if data is None:
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(data)
    upload(page, tmp_path / name)
    page.wait_for_selector(f"text={message}")
    assert page.locator("#frame img").count() == 1
    before = page.inner_text("#text p")
    click(page, 0.95, 0.05)
    page.wait_for_function("before => document.querySelector('#text p').innerText != before", arg=before)
