"""What the Spaces share: the page, fields for uploads, examples, plain messages, and a server with limits."""

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

import gradio as gr
from gradio.data_classes import ListFiles
from PIL import Image

from dinov3_hf.data.scenes import render_scene
from dinov3_hf.pipelines.inputs import LIMITS, InputError, read_image


# ZeroGPU's package has to come before any use of CUDA. From this repository's root `spaces` is our own folder.
LEND_GPU = getattr(importlib.import_module("spaces") if importlib.util.find_spec("spaces") else None, "GPU", None)
# Longer side of pictures on the page, in pixels; networks mostly see them smaller.
SHOWN_SIDE = 768
# Uploads go where no other program's files are, and away with the server.
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="dinov3-demo-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
UPLOADS = Path(os.environ["GRADIO_TEMP_DIR"])
UPLOADS.mkdir(parents=True, exist_ok=True)
# Fields of images: to be uploaded, and to be looked at.
UPLOAD = {"sources": ["upload", "clipboard"], "buttons": ["fullscreen"]}
RESULT = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
# Events that cost no pass through the network: they wait behind nobody's, and of several the last one counts.
QUICK = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": False}
# Seconds after which what the server still holds of a visit is deleted.
MEMORY_SECONDS = 1800
# Fonts of the reader's own system: a page asks no other host for anything.
THEME = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font="sans-serif", font_mono="monospace")
CSS = """
.gradio-container { font-family: system-ui, sans-serif; }
.gradio-container main { width: 100%; max-width: 1200px !important; }
.seeing { max-width: 72ch; }
.seeing h1 { margin-bottom: .2em; }
/* Pictures start below their label and buttons, which would cover places to click. */
.image-container .image-frame { padding-top: 30px; box-sizing: border-box; }
.image-container img { max-height: 70vh; }
/* An error's sentence shows in a corner of the page: the word over every field says no more. */
[data-testid="status-tracker"]:has(.error) { display: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; }
.tiles figure { margin: 0; }
.tiles img { width: 100%; border-radius: 4px; }
.tiles figcaption { font-size: .9rem; overflow-wrap: anywhere; }
"""


@contextmanager
def page(title: str, seeing: str) -> Iterator[gr.Blocks]:
    """Open a page with its title and one sentence on what one sees there."""
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, MEMORY_SECONDS)) as blocks:
        gr.Markdown(f"# {title}\n**What am I seeing?** {seeing}", elem_classes="seeing")
        yield blocks


def session_state() -> gr.State:
    """What the server remembers of one visit: the features of its image, so that a click costs one matrix product."""
    return gr.State(time_to_live=MEMORY_SECONDS)


def unopened(field: gr.components.Component) -> gr.components.Component:
    """Have a field hand over the path of what was uploaded, or a list of paths, with nothing read.

    Gradio's own preprocessing would decode any image or video first, fetch one from an address, both without limits, and
    take a path that a hostile client made up.
    """
    move = field.async_move_resource_to_block_cache

    async def move_uploads_only(path):
        if path and str(path).startswith(("http://", "https://")):
            raise gr.Error("Upload the file itself: addresses are not fetched.", print_exception=False)
        return await move(path)

    def paths_only(payload):
        if payload is None:
            return None
        if isinstance(payload, ListFiles):
            return [paths_only(file) for file in payload]
        if payload.path and UPLOADS.resolve() not in Path(payload.path).resolve().parents:
            raise gr.Error("Upload the file itself: others are not read.", print_exception=False)
        return payload.path

    field.async_move_resource_to_block_cache = move_uploads_only
    field.preprocess = paths_only
    return field


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show the person who caused an `InputError` its sentence; also a decorator of event handlers."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


@contextmanager
def used_once(path: str | None) -> Iterator[str | None]:
    """Delete an upload after its use, readable or not."""
    try:
        yield path
    finally:
        if path and UPLOADS.resolve() in Path(path).resolve().parents:
            Path(path).unlink(missing_ok=True)


def read_shown(path: str | None) -> Image.Image:
    """Read an uploaded image at the size of pictures on the page, small ones enlarged, and delete the upload."""
    with used_once(path):
        image = read_image(path, SHOWN_SIDE)
    scale = SHOWN_SIDE / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def scene(index: int, subset: str = "crowded", side: int = 512) -> Image.Image:
    """Render one of the scenes that come with the package, of their test split: the same picture everywhere."""
    return Image.fromarray(render_scene(index, "test", subset, side).image)


def examples(images: Sequence[Image.Image]) -> gr.Dataset:
    """Show images, whose `click` gives the index of one."""
    folder = Path(tempfile.mkdtemp(dir=UPLOADS))
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    field = gr.Image(visible=False, type="filepath", label="")
    return gr.Dataset(components=[field], samples=[[str(path)] for path in paths], type="index", label="Examples")


def tiles(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Return HTML of small pictures side by side with their captions, as many in a row as there is room for."""
    figures = []
    for picture, caption in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        # Captions hold what people typed.
        text = html.escape(caption)
        figures.append(f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>')
    return f'<div class="tiles">{"".join(figures)}</div>'


def on_gpu(function: Callable) -> Callable:
    """Lend a function a GPU where the Space has ZeroGPU; elsewhere it stays as it is."""
    return LEND_GPU(function) if LEND_GPU else function


def launch(blocks: gr.Blocks, host: str | None = None, port: int | None = None, **options) -> None:
    """Serve a page until it is interrupted, or as `options` of gradio's launch say; on the Hub at the Space's own address.

    Uploads are bounded in size, waiting jobs in number; no file is served but uploads and results.
    """
    blocks.queue(max_size=32, default_concurrency_limit=4)
    blocks.launch(
        server_name=host,
        server_port=port,
        max_file_size=LIMITS.max_bytes,
        # Errors that are not meant for users (`plain_messages`) stay in the server's log.
        show_error=False,
        state_session_capacity=200,
        share=False,
        ssr_mode=False,
        theme=THEME,
        css=CSS,
        footer_links=["gradio", "settings"],
        **options,
    )
