"""Shared parts of the Spaces: the page, upload fields, examples, error messages, and a server with limits."""

import atexit
import base64
import html
import importlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData, ListFiles
from PIL import Image

from dinov3_hf.data.scenes import render_scene
from dinov3_hf.models.pixel_values_dinov3 import Range
from dinov3_hf.pipelines.inputs import LIMITS, InputError, read_image


# The package of ZeroGPU must be imported before CUDA is used. In this repository's root `spaces` is our own folder.
LEND_GPU = getattr(importlib.import_module("spaces") if importlib.util.find_spec("spaces") else None, "GPU", None)
# Longer side in pixels of the images on a page; the network mostly gets them smaller.
SHOWN_SIDE = 768
# Uploads have a folder of their own, which is deleted when the server ends.
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="dinov3-demo-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
UPLOADS = Path(os.environ["GRADIO_TEMP_DIR"])
UPLOADS.mkdir(parents=True, exist_ok=True)
# Options of image fields: for uploads, and for results.
UPLOAD = {"sources": ["upload", "clipboard"], "buttons": ["fullscreen"]}
RESULT = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
# Options of events that do not run the network: they do not queue, and of several only the last one is run.
QUICK = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": False}
# The default of a handler's argument that Gradio replaces by its progress bar.
PROGRESS = gr.Progress()
# Seconds after which the server deletes the data of a visit.
MEMORY_SECONDS = 1800
# System fonts, so that a page requests nothing from other hosts.
THEME = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font="sans-serif", font_mono="monospace")
CSS = """
.gradio-container { font-family: system-ui, sans-serif; }
.gradio-container main { width: 100%; max-width: 1200px !important; }
.seeing { max-width: 72ch; }
.seeing h1 { margin-bottom: .2em; }
/* Images start below their label and buttons, which would cover parts that can be clicked. */
.image-container .image-frame { padding-top: 30px; box-sizing: border-box; }
.image-container img { max-height: 70vh; }
/* The message of an error is shown in a corner of the page: hide the word "Error" over every field. */
[data-testid="status-tracker"]:has(.error) { display: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; }
.tiles figure { margin: 0; }
.tiles img { width: 100%; border-radius: 4px; }
.tiles figcaption { font-size: .9rem; overflow-wrap: anywhere; }
"""


@contextmanager
def page(title: str, seeing: str) -> Iterator[gr.Blocks]:
    """Open a page with a title and a short text that explains what the page shows."""
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, MEMORY_SECONDS)) as blocks:
        gr.Markdown(f"# {title}\n**What am I seeing?** {seeing}", elem_classes="seeing")
        yield blocks


def session_state() -> gr.State:
    """Return what the server keeps of a visit, such as features, so that a click does not run the network again."""
    return gr.State(time_to_live=MEMORY_SECONDS)


def unopened(field: gr.components.Component) -> gr.components.Component:
    """Make a field pass the path of an upload, or a list of paths, to its handler, without reading the file.

    Gradio's own preprocessing would decode any image or video, fetch files from a URL, both without limits, and accept
    any path that a client sends.
    """
    move = field.async_move_resource_to_block_cache

    async def move_uploads_only(path: str | None) -> str | None:
        if path and str(path).startswith(("http://", "https://")):
            raise gr.Error("Upload the file itself: addresses are not fetched.", print_exception=False)
        return await move(path)

    def path_of(file: FileData) -> str:
        if file.path and UPLOADS.resolve() not in Path(file.path).resolve().parents:
            raise gr.Error("Upload the file itself: others are not read.", print_exception=False)
        return file.path

    def paths_only(payload: FileData | ListFiles | None) -> str | list[str] | None:
        if isinstance(payload, ListFiles):
            return [path_of(file) for file in payload]
        return None if payload is None else path_of(payload)

    field.async_move_resource_to_block_cache = move_uploads_only
    field.preprocess = paths_only
    return field


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show the message of an `InputError` to the user; also usable as a decorator of event handlers."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


@contextmanager
def used_once(path: str | None) -> Iterator[str | None]:
    """Delete an upload after its use, even if it could not be read."""
    try:
        yield path
    finally:
        if path and UPLOADS.resolve() in Path(path).resolve().parents:
            Path(path).unlink(missing_ok=True)


def read_shown(path: str | None, value_range: Range | None = None) -> Image.Image:
    """Read an uploaded image, resize it so that its longer side is `SHOWN_SIDE`, and delete the upload."""
    with used_once(path):
        image = read_image(path, SHOWN_SIDE, value_range)
    scale = SHOWN_SIDE / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def scene(index: int, subset: str = "crowded", side: int = 512) -> Image.Image:
    """Render a scene of the test split of the package's rendered scenes; it is the same on every machine."""
    return Image.fromarray(render_scene(index, "test", subset, side).image)


def examples(images: Sequence[Image.Image]) -> gr.Dataset:
    """Return a row of example images; its `click` event passes the index of the clicked one."""
    folder = Path(tempfile.mkdtemp(dir=UPLOADS))
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    field = gr.Image(visible=False, type="filepath", label="")
    return gr.Dataset(components=[field], samples=[[str(path)] for path in paths], type="index", label="Examples")


def resolution(finest: int, step: int, value: int) -> gr.Slider:
    """Return a slider for the number of patches along the longer side."""
    label = "Resolution (patches along the longer side)"
    return gr.Slider(step, finest, value, step=step, label=label, elem_id="patches")


def explained_slider(
    low: float, high: float, value: float, step: float, label: str, info: str, name: str
) -> gr.Slider:
    """Return a slider with a line that explains it."""
    return gr.Slider(low, high, value, step=step, label=label, info=info, elem_id=name)


def tiles(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Return HTML of small images with captions, in as many columns as fit."""
    figures = []
    for picture, caption in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        # Captions contain text that users typed.
        text = html.escape(caption)
        figures.append(f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>')
    return f'<div class="tiles">{"".join(figures)}</div>'


def on_gpu(function: Callable) -> Callable:
    """Let a function run on a GPU of ZeroGPU, if the Space has it; otherwise return it unchanged."""
    return LEND_GPU(function) if LEND_GPU else function


def launch(blocks: gr.Blocks, host: str | None = None, port: int | None = None, **options: Any) -> None:
    """Serve a page until it is interrupted; `options` go to the `launch` of gradio.

    Without host and port the page is served at gradio's default address, on the Hub at that of the Space. The size of
    uploads and the number of waiting jobs are limited; no files are served except uploads and results.
    """
    blocks.queue(max_size=32, default_concurrency_limit=4)
    blocks.launch(
        server_name=host,
        server_port=port,
        max_file_size=LIMITS.max_bytes,
        # Errors not meant for users (all but those of `plain_messages`) are only written to the server's log.
        show_error=False,
        state_session_capacity=200,
        share=False,
        ssr_mode=False,
        theme=THEME,
        css=CSS,
        footer_links=["gradio", "settings"],
        **options,
    )
