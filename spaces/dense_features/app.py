"""Dense features: a PCA map of an image's patches, and their similarity to a clicked patch."""

import os
from typing import TypedDict

import gradio as gr
import torch
from PIL import Image

from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.spaces import layout
from dinov3_hf.visualization.features import heat_colours, outline_cell, pca_map, similarity_map, stretch


TITLE = "Dense features"
SEEING = (
    "The network computes a feature for every patch of the image; it was trained without labels. In the PCA map, "
    "patches with similar features have similar colours. **Click** a patch to see how similar all others are to it."
)
# Numbers of patches along the longer side.
FINEST, STEP, DEFAULT = 64, 16, 32


class Visit(TypedDict):
    """What the server keeps of a visit: the image, its patch tokens [h,w,D], and the clicked point (x, y) in 0..1."""

    image: Image.Image
    tokens: torch.Tensor
    place: tuple[float, float]


def build(model: str | None = None) -> gr.Blocks:
    """Build the page for a model in any layout; by default the one named by DINOV3_MODEL, or the bundled one."""
    encoder = Encoder.from_pretrained(model or os.environ.get("DINOV3_MODEL"))
    encode = layout.on_gpu(lambda image, patches: encoder.tokens(image, patches * encoder.patch_size).cpu())
    scenes = [layout.scene(index) for index in range(3)]

    @layout.plain_messages()
    def open_upload(path: str | None, patches: int) -> tuple[Image.Image, Image.Image, Image.Image, str, Visit]:
        return show(layout.read_shown(path, encoder.value_range), patches)

    def open_example(index: int, patches: int) -> tuple[Image.Image, Image.Image, Image.Image, str, Visit]:
        return show(scenes[index], patches)

    def show(
        image: Image.Image, patches: int, place: tuple[float, float] = (0.5, 0.5)
    ) -> tuple[Image.Image, Image.Image, Image.Image, str, Visit]:
        tokens = encode(image, patches)
        colours = pca_map(tokens.flatten(0, 1), tokens.shape[:2])
        visit: Visit = {"image": image, "tokens": tokens, "place": place}
        return image, stretch(colours, image.size), *compare(visit), visit

    def change_resolution(
        visit: Visit | None, patches: int
    ) -> tuple[Image.Image | None, Image.Image | None, str, Visit | None]:
        return show(visit["image"], patches, visit["place"])[1:] if visit else (None, None, "", None)

    def click(visit: Visit | None, event: gr.SelectData) -> tuple[Image.Image | None, str, Visit | None]:
        if not visit:
            return None, "", None
        width, height = visit["image"].size
        visit = visit | {"place": (event.index[0] / width, event.index[1] / height)}
        return *compare(visit), visit

    def compare(visit: Visit) -> tuple[Image.Image, str]:
        tokens, (x, y) = visit["tokens"], visit["place"]
        rows, columns = grid = tokens.shape[:2]
        row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
        cosines = similarity_map(tokens.flatten(0, 1), tokens[row, column], grid)
        picture = outline_cell(stretch(heat_colours(cosines.numpy()), visit["image"].size), grid, (row, column))
        share = (cosines > 0.5).float().mean().item()
        sentence = f"Patch in row {row + 1} of {rows}, column {column + 1} of {columns}: "
        return picture, sentence + f"{share:.0%} of the image has a cosine above 0.5 to it."

    with layout.page(TITLE, SEEING) as blocks:
        visit = layout.session_state()
        with gr.Row():
            image = layout.unopened(gr.Image(label="Image (click a patch)", elem_id="image", **layout.UPLOAD))
            similar = gr.Image(label="Similarity to the clicked patch", elem_id="similar", **layout.RESULT)
            colours = gr.Image(label="PCA map", elem_id="pca", **layout.RESULT)
        text = gr.Markdown(elem_id="text")
        patches = layout.resolution(FINEST, STEP, DEFAULT)
        choices = layout.examples(scenes)
        results = [colours, similar, text, visit]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": [similar, colours]}
        image.upload(open_upload, [image, patches], [image, *results], **network).failure(
            lambda: (None, None, None, "", None), None, [image, *results]
        )
        choices.click(open_example, [choices, patches], [image, *results], **network)
        patches.change(change_resolution, [visit, patches], results, trigger_mode="always_last", **network)
        for picture in (image, colours, similar):
            picture.select(click, visit, [similar, text, visit], **layout.QUICK)
        blocks.load(lambda patches: open_example(0, patches), patches, [image, *results], **network)
    return blocks


if __name__ == "__main__":
    layout.launch(build())
