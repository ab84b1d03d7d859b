"""Every Space served once, and a real browser in front of it, at the widths of a desk and a telephone."""

import importlib
import shutil

import pytest

from ..ports import free_port


WIDTHS = (1280, 390)


@pytest.fixture(scope="session")
def serve():
    """A function from the name of a Space to the address where it runs, with the bundled model."""
    pytest.importorskip("gradio")
    from dinov3_hf.spaces.layout import launch

    running = {}

    def address(name: str) -> str:
        if name not in running:
            blocks = importlib.import_module(f"dinov3_hf.spaces.{name}.app").build()
            launch(blocks, "127.0.0.1", free_port(), prevent_thread_lock=True, quiet=True)
            running[name] = blocks
        return running[name].local_url

    yield address
    for blocks in running.values():
        blocks.close(verbose=False)


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=[WIDTHS[0], pytest.param(WIDTHS[1], marks=pytest.mark.slow)])
def window(request, browser):
    """A browser window of one width, which keeps the pages' scripts from test to test."""
    window = browser.new_context(viewport={"width": request.param, "height": 900})
    window.set_default_timeout(20_000)
    yield window
    window.close()


@pytest.fixture
def tab(window):
    """A fresh page; afterwards it has asked no other host, thrown no error and needs no sideways scrolling."""
    page = window.new_page()
    asked, thrown = [], []
    page.on("request", lambda seen: asked.append(seen.url))
    page.on("pageerror", lambda error: thrown.append(str(error)))
    yield page
    needed, given = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    page.close()
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert not thrown
    assert needed <= given
