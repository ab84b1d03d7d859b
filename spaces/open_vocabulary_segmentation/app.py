"""Open-vocabulary segmentation: type words and see where they are in the image."""

import os
from typing import TypedDict

import gradio as gr
import numpy as np
from PIL import Image

from dinov3_hf.data.scenes import SCENE_CLASSES
from dinov3_hf.pipelines.inputs import LIMITS, InputError, read_prompts
from dinov3_hf.pipelines.open_vocabulary import WordMap, check_words, map_words
from dinov3_hf.pipelines.search import Embedder
from dinov3_hf.spaces import layout
from dinov3_hf.visualization.classes import class_colours, overlay
from dinov3_hf.visualization.features import cut_out


TITLE = "Segmentation by words"
SEEING = (
    "Every pixel gets the colour of the **word** that is most similar to it, or none if no word is clearly more "
    "similar than the others. The model was trained on captions only, without masks."
)
BUNDLED = " This small model, bundled with the package, knows 50 words about rendered scenes and makes many mistakes."
# Scenes of the test split, each with words; the bundled model does not know the last word of the last one.
EXAMPLES = ((38, "house, tree, car"), (7, "star, cup, chair, key"), (29, "car, mushroom, fish, bicycle"))
FINEST, DETAIL, THRESHOLD = 4, 3, 0.5


class Visit(TypedDict, total=False):
    """What the server keeps of a visit: the image, and the map of the last words."""

    image: Image.Image
    map: WordMap


def build(model: str | None = None) -> gr.Blocks:
    """Build the page for a text-aligned model; by default the one named by DINOV3_MODEL, or the bundled one."""
    name = model or os.environ.get("DINOV3_MODEL")
    embedder = check_words(Embedder.from_pretrained(name))
    compare = layout.on_gpu(lambda image, words, detail: map_words(embedder, image, words, detail))
    scenes = [layout.scene(index) for index, _ in EXAMPLES]

    @layout.plain_messages()
    def open_upload(path: str | None) -> tuple[Image.Image, Visit]:
        image = layout.read_shown(path, embedder.value_range)
        return image, {"image": image}

    def open_example(
        index: int, detail: int, threshold: float
    ) -> tuple[str, Image.Image, np.ndarray | None, str, str, Visit]:
        image, text = scenes[index], EXAMPLES[index][1]
        return text, image, *segment({"image": image}, text, detail, threshold)

    @layout.plain_messages()
    def segment(
        visit: Visit | None, text: str, detail: int, threshold: float
    ) -> tuple[np.ndarray | None, str, str, Visit]:
        if not visit:
            raise InputError("Choose an image first.")
        words = read_prompts(text)
        visit = {"image": visit["image"], "map": compare(visit["image"], words, detail)}
        return *paint(visit, threshold), visit

    def paint(visit: Visit | None, threshold: float) -> tuple[np.ndarray | None, str, str]:
        # Moved before the first segmentation of an upload has ended, the threshold has nothing to act on yet.
        if not visit or "map" not in visit:
            return None, "", ""
        image, word_map = visit["image"], visit["map"]
        classes = word_map.classes(threshold).numpy()
        masks = []
        for number, word in enumerate(word_map.words, start=1):
            if (mask := classes == number).any():
                picture = cut_out(image, mask, class_colours(np.array(number)))
                masks.append((picture, f"{word}: {mask.mean():.0%}"))
        return overlay(np.asarray(image), classes), layout.tiles(masks), describe(word_map, len(masks))

    def describe(word_map: WordMap, count: int) -> str:
        low, high = word_map.span()
        lines = [
            f"{count} of {len(word_map.words)} words found. The cosine of the best word is {low:.2f} (threshold 0) to "
            f"{high:.2f} (threshold 1) above the mean of all words."
        ]
        if unknown := embedder.unknown_words(", ".join(word_map.words)):
            lines.append(
                f"⚠️ Words the model does not know: **{', '.join(unknown)}**. What it shows for them is a guess."
            )
        return "\n\n".join(lines)

    with layout.page(TITLE, SEEING + ("" if name else BUNDLED)) as blocks:
        visit = layout.session_state()
        with gr.Row(equal_height=False):
            with gr.Column():
                image = layout.unopened(gr.Image(label="Image", elem_id="image", **layout.UPLOAD))
                text = gr.Textbox(
                    ", ".join(SCENE_CLASSES),
                    label=f"Words or phrases, separated by commas (at most {LIMITS.max_prompts})",
                    max_lines=4,
                    elem_id="words",
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Column():
                result = gr.Image(label="Segmentation", elem_id="result", **layout.RESULT)
                message = gr.Markdown(elem_id="message")
                info = "0: every pixel gets a word; 1: almost none does"
                threshold = layout.explained_slider(0, 1, THRESHOLD, 0.01, "Mask threshold", info, "threshold")
                info = "More scales show smaller things and take longer"
                detail = layout.explained_slider(1, FINEST, DETAIL, 1, "Scales", info, "detail")
        masks = gr.HTML(elem_id="masks", padding=False)
        choices = layout.examples(scenes)
        settings, results = [detail, threshold], [result, masks, message]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": result}
        given = {"fn": segment, "inputs": [visit, text, *settings], "outputs": [*results, visit], **network}
        opened = image.upload(open_upload, image, [image, visit])
        opened.failure(lambda: (None, None, "", "", None), None, [image, *results, visit])
        opened.success(**given)
        button.click(**given)
        text.submit(**given)
        detail.change(**given, trigger_mode="always_last")
        threshold.change(paint, [visit, threshold], results, **layout.QUICK)
        choices.click(open_example, [choices, *settings], [text, image, *results, visit], **network)
        blocks.load(lambda *values: open_example(0, *values), settings, [text, image, *results, visit], **network)
    return blocks


if __name__ == "__main__":
    layout.launch(build())
