"""Correspondence: click a point in one image and see the matching point in another, or all mutual matches."""

import os

import gradio as gr
import numpy as np
import torch
from PIL import Image

from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.pipelines.correspondence import ImagePair, draw_match, draw_mutual, encode_pair
from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.pipelines.inputs import read_image
from dinov3_hf.spaces import layout


TITLE = "Correspondence"
SEEING = (
    "**Click** a point in the left image: the ring in the right image marks the most similar point, and brighter "
    "areas are more similar. The network was not trained to match points."
)
ONE, ALL = "Clicked point", "Mutual matches"
# What the server keeps of a visit: the images, and the clicked point (x, y).
Visit = tuple[ImagePair, torch.Tensor]
# What `draw` returns: both images and the text.
Drawn = tuple[Image.Image | None, Image.Image | None, str]
# What most handlers return: the same and the visit.
Shown = tuple[Image.Image | None, Image.Image | None, str, Visit | None]
EXAMPLE_ROWS = (0, 4, 8)
# Numbers of patches along the longer side.
FINEST, STEP, DEFAULT = 64, 8, 24


def draw(visit: Visit | None, view: str) -> Drawn:
    """Return both images with the clicked point and its match, or with all mutual matches, and a text."""
    if visit is None:
        return None, None, ""
    pair, place = visit
    if view == ALL:
        first, second, cosines = pair.mutual()
        text = f"{len(cosines)} mutual matches (pairs of patches most similar to each other), in equal colours."
        return *draw_mutual(pair, first, second), text
    (match,), (cosine,) = pair.find(place[None])
    (x, y), (to_x, to_y) = place.tolist(), match.tolist()
    text = f"({x:.0f}, {y:.0f}) on the left matches ({to_x:.0f}, {to_y:.0f}) on the right; cosine {cosine:.2f}."
    return *draw_match(pair, place, match), text


def build(model: str | None = None) -> gr.Blocks:
    """Build the page for a model in any layout; by default the one named by DINOV3_MODEL, or the bundled one."""
    encoder = Encoder.from_pretrained(model or os.environ.get("DINOV3_MODEL"))
    encode = layout.on_gpu(
        lambda images, patches: encode_pair(encoder, images[0], images[1], patches * encoder.patch_size)
    )
    scenes = load_scenes("validation", EXAMPLE_ROWS[-1] + 2, "pairs", image_size=512)["image"]
    pairs = [(scenes[row], scenes[row + 1]) for row in EXAMPLE_ROWS]

    def show(images: tuple[Image.Image, Image.Image], patches: int, view: str) -> Shown:
        visit = encode(images, patches), torch.tensor(images[0].size) / 2
        return *draw(visit, view), visit

    def open_example(index: int, patches: int, view: str) -> Shown:
        return show(pairs[index], patches, view)

    @layout.plain_messages()
    def open_upload(number: int, path: str | None, visit: Visit | None, patches: int, view: str) -> Shown:
        with layout.used_once(path):
            images = list(visit[0].images if visit else pairs[0])
            images[number] = read_image(path, layout.SHOWN_SIDE, encoder.value_range)
        return show(tuple(images), patches, view)

    def change_resolution(visit: Visit | None, patches: int, view: str) -> Shown:
        visit = visit and (encode(visit[0].images, patches), visit[1])
        return *draw(visit, view), visit

    def click(
        visit: Visit | None, event: gr.SelectData
    ) -> tuple[Image.Image | None, Image.Image | None, str, Visit | None, str]:
        visit = visit and (visit[0], torch.tensor(event.index))
        return *draw(visit, ONE), visit, ONE

    with layout.page(TITLE, SEEING) as blocks:
        visit = layout.session_state()
        with gr.Row():
            fields = [
                layout.unopened(
                    gr.Image(
                        label=label,
                        show_label=False,
                        format="jpeg",
                        sources=["upload", "clipboard"],
                        min_width=150,
                        elem_id=label.lower(),
                    )
                )
                for label in ("Left", "Right")
            ]
        text = gr.Markdown(elem_id="text")
        with gr.Row():
            view = gr.Radio([ONE, ALL], value=ONE, label="Show", elem_id="view")
            patches = layout.resolution(FINEST, STEP, DEFAULT)
        choices = layout.examples([Image.fromarray(np.concatenate(pair, axis=1)) for pair in pairs])
        settings, results = [patches, view], [*fields, text, visit]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": fields}
        blocks.load(lambda *given: open_example(0, *given), settings, results, **network)
        choices.click(open_example, [choices, *settings], results, **network)
        patches.change(change_resolution, [visit, *settings], results, trigger_mode="always_last", **network)
        for number, field in enumerate(fields):
            field.upload(
                lambda *given, number=number: open_upload(number, *given),
                [field, visit, *settings],
                results,
                **network,
            ).failure(lambda visit, view: draw(visit, view)[:2], [visit, view], fields)
        fields[0].select(click, visit, [*results, view], **layout.QUICK)
        view.input(draw, [visit, view], results[:3], **layout.QUICK)
    return blocks


if __name__ == "__main__":
    layout.launch(build())
