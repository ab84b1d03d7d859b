"""Dense features: the PCA map of an image's patches, and how similar all of them are to the one that is clicked."""

import os

import gradio as gr

from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.spaces.layout import (
    QUICK,
    RESULT,
    UPLOAD,
    examples,
    launch,
    on_gpu,
    page,
    plain_messages,
    read_shown,
    scene,
    session_state,
    unopened,
)
from dinov3_hf.visualization.features import heat_colours, outline_cell, pca_map, similarity_map, stretch


TITLE = "Dense features"
SEEING = (
    "Every patch of the image has a feature that the network computed without ever being told what things are. Patches "
    "of like features have like colours in the map; **click** anywhere to see how similar all patches are to that one."
)
# Patches along the longer side: how finely the network looks.
FINEST, STEP, DEFAULT = 64, 16, 32


def build(model: str | None = None) -> gr.Blocks:
    """Build the page for a model of any layout; by default that of DINOV3_MODEL, or the bundled one."""
    encoder = Encoder.from_pretrained(model or os.environ.get("DINOV3_MODEL"))
    encode = on_gpu(lambda image, patches: encoder.tokens(image, patches * encoder.patch_size).cpu())
    scenes = [scene(index) for index in range(3)]

    @plain_messages()
    def open_upload(path, patches):
        return show(read_shown(path), patches)

    def open_example(index, patches):
        return show(scenes[index], patches)

    def show(image, patches, place=(0.5, 0.5)):
        tokens = encode(image, patches)
        colours = pca_map(tokens.flatten(0, 1), tokens.shape[:2])
        visit = {"image": image, "tokens": tokens, "place": place}
        return image, stretch(colours, image.size), *compare(visit), visit

    def change_resolution(visit, patches):
        return show(visit["image"], patches, visit["place"])[1:] if visit else (None, None, "", None)

    def click(visit, event: gr.SelectData):
        if not visit:
            return None, "", None
        width, height = visit["image"].size
        visit = visit | {"place": (event.index[0] / width, event.index[1] / height)}
        return *compare(visit), visit

    def compare(visit):
        tokens, (x, y) = visit["tokens"], visit["place"]
        rows, columns = grid = tokens.shape[:2]
        row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
        cosines = similarity_map(tokens.flatten(0, 1), tokens[row, column], grid)
        picture = outline_cell(stretch(heat_colours(cosines.numpy()), visit["image"].size), grid, (row, column))
        share = (cosines > 0.5).float().mean().item()
        sentence = f"Patch in row {row + 1} of {rows}, column {column + 1} of {columns}: "
        return picture, sentence + f"{share:.0%} of the image has a cosine above 0.5 to it."

    with page(TITLE, SEEING) as blocks:
        visit = session_state()
        with gr.Row():
            image = unopened(gr.Image(label="Image: click in it", elem_id="image", **UPLOAD))
            similar = gr.Image(label="Similarity to the patch", elem_id="similar", **RESULT)
            colours = gr.Image(label="PCA map of the patches", elem_id="pca", **RESULT)
        text = gr.Markdown(elem_id="text")
        patches = gr.Slider(
            STEP, FINEST, DEFAULT, step=STEP, label="Resolution: patches along the longer side", elem_id="patches"
        )
        choices = examples(scenes)
        results = [colours, similar, text, visit]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": [similar, colours]}
        image.upload(open_upload, [image, patches], [image, *results], **network).failure(
            lambda: (None, None, None, "", None), None, [image, *results]
        )
        choices.click(open_example, [choices, patches], [image, *results], **network)
        patches.change(change_resolution, [visit, patches], results, trigger_mode="always_last", **network)
        for picture in (image, colours, similar):
            picture.select(click, visit, [similar, text, visit], **QUICK)
        blocks.load(lambda patches: open_example(0, patches), patches, [image, *results], **network)
    return blocks


if __name__ == "__main__":
    launch(build())
