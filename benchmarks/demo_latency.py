"""How long does a user of a Space wait for the first picture, and after a click, a text or a move of a slider?

Spaces run as `dinov3 demo` starts them, on two threads and with the bundled checkpoint; a headless Chromium performs
the actions and waits until the new picture or sentence is on the page. Images are 512 pixels a side.

    python benchmarks/demo_latency.py
    python benchmarks/demo_latency.py --docs docs/demos.md
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dinov3_hf.data.scenes import render_scene
from dinov3_hf.evaluation.results import markdown, replace_table


# Seconds that nobody should have to wait longer than.
LIMITS = {"start": 30.0, "first picture": 5.0, "upload": 2.0, "click": 0.3, "words": 2.0, "threshold": 0.3}


@contextmanager
def running(name: str) -> Iterator[tuple[str, float]]:
    """Start a Space; yield its address and the seconds that starting took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.perf_counter()
    command = [sys.executable, "-m", "dinov3_hf.cli", "demo", name, "--no-browser", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        address = next(word for line in process.stdout for word in line.split() if word.startswith("http"))
        yield address, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def wait(page: Page, field: str, act: Callable[[], None]) -> float:
    """Return the seconds from an action to the change of a picture or sentence on the page."""
    show = "field => (place => place?.src ?? place?.innerHTML)(document.querySelector(field))"
    before = page.evaluate(show, field)
    start = time.perf_counter()
    act()
    page.wait_for_function(
        """([field, before]) => { const place = document.querySelector(field);
        return place && (place.src ?? place.innerHTML) != before && (place.complete ?? true) }""",
        arg=[field, before],
    )
    return time.perf_counter() - start


def click_at(page: Page, field: str, x: float, y: float) -> None:
    box = page.locator(f"{field} img").first.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def set_slider(page: Page, field: str, value: float) -> None:
    number = page.locator(f"{field} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def type_words(page: Page, words: str) -> None:
    page.fill("#words textarea, #words input", words)
    page.click("#segment")


def measure(page: Page, name: str, address: str, image: Path, repeats: int) -> dict[str, list[float]]:
    result = "#similar img" if name == "dense_features" else "#result img"
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(result)
    times = {"first picture": [time.perf_counter() - start]}
    times["upload"] = [wait(page, result, lambda: page.set_input_files("#image input[type=file]", image))]
    places = np.random.default_rng(0).uniform(0.1, 0.9, (repeats, 2)).tolist()
    if name == "dense_features":
        times["click"] = [wait(page, result, partial(click_at, page, "#image", x, y)) for x, y in places]
        return times
    words = ["star, cup, fish, key, boat", "mushroom, house, chair"]
    times["words"] = [wait(page, result, partial(type_words, page, words[i % 2])) for i in range(repeats)]
    # Never the same one twice in a row.
    thresholds = [0.1 + 0.8 * (7 * i % 20) / 20 for i in range(repeats)]
    times["threshold"] = [wait(page, result, partial(set_slider, page, "#threshold", round(x, 2))) for x in thresholds]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--docs", help="page whose table is replaced")
    arguments = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    rows = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.fromarray(render_scene(4, "test", "crowded", 512).image).save(image)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name in ("dense_features", "open_vocabulary_segmentation"):
            with running(name) as (address, started):
                page = browser.new_page(viewport={"width": 1280, "height": 1200})
                times = {"start": [started]} | measure(page, name, address, image, arguments.repeats)
                page.close()
            for step, values in times.items():
                middle = statistics.median(values)
                rows.append(
                    [
                        name,
                        step,
                        f"{middle:.2f}",
                        f"{max(values):.2f}",
                        str(LIMITS[step]),
                        f"{middle / LIMITS[step]:.2f}",
                    ]
                )
    table = markdown([["space", "step", "median (s)", "slowest (s)", "limit (s)", "median / limit"], *rows])
    print(table)
    if arguments.docs:
        replace_table(Path(arguments.docs), "benchmarks/demo_latency.py", table)


if __name__ == "__main__":
    main()
