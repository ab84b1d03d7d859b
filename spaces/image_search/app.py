"""Image search: search a collection of images by words, by an image, or by one of the results."""

import os
from contextlib import ExitStack

import gradio as gr
import torch
from PIL import Image

from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.pipelines.image_files import ImageFiles
from dinov3_hf.pipelines.inputs import LIMITS, read_image, read_prompts
from dinov3_hf.pipelines.search import Embedder, ImageIndex, source_images
from dinov3_hf.spaces import layout


TITLE = "Image search"
SEEING = (
    "The images of a collection that are most similar to your words or image, best first; the number is the cosine "
    "similarity. **Click** an image to search for similar ones."
)
NO_WORDS = "This model has no text tower: search by an image."
NUM_SCENES, NUM_FOUND = 150, 9
# Three columns of at least 100 pixels fit on a phone if there is no frame around them.
GRID = {"columns": 3, "height": "fit-content", "container": False, "allow_preview": False, "format": "jpeg"}
# What the server keeps of a visit: the collection, and the rows of the images shown.
Visit = tuple[ImageIndex, list[int]]
# Images with captions for a gallery.
Gallery = list[tuple[Image.Image, str | None]]


def build(model: str | None = None, data: str | None = None) -> gr.Blocks:
    """Build the page for a model in any layout and any source of images.

    By default they are named by DINOV3_MODEL and DINOV3_DATA, or are the bundled text model and rendered scenes.
    """
    embedder = Embedder.from_pretrained(model or os.environ.get("DINOV3_MODEL"))
    embed = layout.on_gpu(lambda images: embedder.images(images))
    embed_text = layout.on_gpu(lambda text: embedder.text(text))
    queries = [layout.scene(number, "single") for number in range(3)]
    if data := data or os.environ.get("DINOV3_DATA"):
        images = source_images(data, "train", LIMITS.max_images, layout.SHOWN_SIDE, embedder.value_range)
        ours = ImageIndex.of(embed, images)
    else:
        ours = ImageIndex.of(embed, load_scenes("validation", NUM_SCENES, image_size=160)["image"])

    def show(index: ImageIndex, query: torch.Tensor, text: str) -> tuple[Gallery, str, Visit]:
        rows, cosines = index.nearest(query, NUM_FOUND)
        results: Gallery = [(index.picture(row), f"{cosine:.2f}") for row, cosine in zip(rows, cosines, strict=True)]
        return results, f"{text} among {len(index)} images.", (index, rows)

    def collection(visit: Visit | None) -> ImageIndex:
        return visit[0] if visit else ours

    @layout.plain_messages()
    def by_words(words: str, visit: Visit | None) -> tuple[Gallery, str, Visit]:
        words = ", ".join(read_prompts(words))
        unknown = embedder.unknown_words(words)
        warning = f"Words the model does not know: {', '.join(unknown)}. " if unknown else ""
        return show(collection(visit), embed_text(words), f"{warning}Nearest to “{words}”")

    def by_image(image: Image.Image, visit: Visit | None) -> tuple[Image.Image, Gallery, str, Visit]:
        return image, *show(collection(visit), embed([image])[0], "Nearest to the image")

    def by_example(number: int, visit: Visit | None) -> tuple[Image.Image, Gallery, str, Visit]:
        return by_image(queries[number], visit)

    @layout.plain_messages()
    def by_upload(path: str | None, visit: Visit | None) -> tuple[Image.Image, Gallery, str, Visit]:
        with layout.used_once(path):
            image = read_image(path, layout.SHOWN_SIDE, embedder.value_range)
        return by_image(image, visit)

    def by_result(visit: Visit, event: gr.SelectData) -> tuple[Image.Image, Gallery, str, Visit]:
        index, rows = visit
        row = rows[event.index]
        return index.picture(row), *show(index, index.features[row], "Nearest to the clicked image")

    @layout.plain_messages()
    def collect(paths: list[str] | None, progress: gr.Progress = layout.PROGRESS) -> tuple[None, Gallery, str, Visit]:
        with ExitStack() as uploads:
            for path in paths or ():
                uploads.enter_context(layout.used_once(path))
            files = ImageFiles(paths, layout.SHOWN_SIDE, embedder.value_range)
            reading = progress.tqdm(files, desc="Reading", unit="images")
            index = ImageIndex.of(embed, (image for image in reading if image is not None))
        unread = len(files) - len(index)
        left = f"; {unread} of {len(files)} files could not be read" if unread else ""
        return browse(index, left)

    def browse(index: ImageIndex = ours, left: str = "") -> tuple[None, Gallery, str, Visit]:
        rows = list(range(min(len(index), NUM_FOUND)))
        return None, [(index.picture(row), None) for row in rows], f"{len(index)} images{left}.", (index, rows)

    with layout.page(TITLE, SEEING) as blocks:
        visit = layout.session_state()
        words = gr.Textbox(
            label="Search by words",
            placeholder="a red fish" if embedder.tokenizer else NO_WORDS,
            interactive=embedder.tokenizer is not None,
            submit_btn=True,
            max_length=LIMITS.max_prompt_length,
            elem_id="words",
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                text = gr.Markdown(elem_id="text")
                gallery = gr.Gallery(show_label=False, buttons=[], **GRID, elem_id="found")
            with gr.Column(scale=2, min_width=280):
                image = layout.unopened(
                    gr.Image(label="Search by an image", height=240, elem_id="image", **layout.UPLOAD)
                )
                choices = layout.examples(queries)
                with gr.Row():
                    mine = upload_many("Upload images", "multiple", "mine")
                    folder = upload_many("Upload folder", "directory", "folder")
                    forget = gr.Button("Reset", elem_id="forget", size="md", min_width=80)
                gr.Markdown(
                    f"Up to {LIMITS.max_images} images, also in zip archives. Uploads are deleted after they are read."
                )
        results = [image, gallery, text, visit]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": gallery}
        blocks.load(browse, None, results)
        words.submit(by_words, [words, visit], results[1:], **network)
        choices.click(by_example, [choices, visit], results, **network)
        image.upload(by_upload, [image, visit], results, **network).failure(lambda: None, None, image)
        gallery.select(by_result, visit, results, show_progress="hidden")
        for button in (mine, folder):
            button.upload(
                collect, button, results, concurrency_id="collect", concurrency_limit=1, show_progress_on=gallery
            )
        forget.click(browse, None, results)
    return blocks


def upload_many(label: str, count: str, name: str) -> gr.UploadButton:
    """Return an upload button for many files, which passes their paths to its handler."""
    return layout.unopened(gr.UploadButton(label, file_count=count, size="md", min_width=80, elem_id=name))


if __name__ == "__main__":
    layout.launch(build())
