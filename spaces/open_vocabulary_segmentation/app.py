"""Segmentation by words: type what may be in the image, and see where."""

import os

import gradio as gr
import numpy as np

from dinov3_hf.data.scenes import SCENE_CLASSES
from dinov3_hf.pipelines.inputs import LIMITS, InputError, read_prompts
from dinov3_hf.pipelines.open_vocabulary import check_words, map_words
from dinov3_hf.pipelines.search import Embedder
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
    tiles,
    unopened,
)
from dinov3_hf.visualization.classes import class_colours, overlay
from dinov3_hf.visualization.features import cut_out


TITLE = "Segmentation by words"
SEEING = (
    "Every pixel has the colour of the **word** whose feature is nearest to its own; pixels for which no word stands out "
    "have none. Nobody drew masks for training: the model only read captions."
)
BUNDLED = " The small model that comes with the package knows 50 words about drawn scenes, and often errs."
# Scenes of the test split, each with words; the last ones have one that the bundled model was never taught.
EXAMPLES = ((38, "house, tree, car"), (7, "star, cup, chair, key"), (29, "car, mushroom, fish, bicycle"))
FINEST, DETAIL, THRESHOLD = 4, 3, 0.5


def build(model: str | None = None) -> gr.Blocks:
    """Build the page for a text-aligned model; by default that of DINOV3_MODEL, or the bundled one."""
    name = model or os.environ.get("DINOV3_MODEL")
    embedder = check_words(Embedder.from_pretrained(name))
    compare = on_gpu(lambda image, words, detail: map_words(embedder, image, words, detail))
    scenes = [scene(index) for index, _ in EXAMPLES]

    @plain_messages()
    def open_upload(path):
        image = read_shown(path)
        return image, {"image": image}

    def open_example(index, detail, threshold):
        image, text = scenes[index], EXAMPLES[index][1]
        return text, image, *segment({"image": image}, text, detail, threshold)

    @plain_messages()
    def segment(visit, text, detail, threshold):
        if not visit:
            raise InputError("Choose an image first.")
        words = read_prompts(text)
        visit = {"image": visit["image"], "map": compare(visit["image"], words, detail)}
        return *paint(visit, threshold), visit

    def paint(visit, threshold):
        if not visit:
            return None, "", ""
        image, found = visit["image"], visit["map"]
        classes = found.classes(threshold).numpy()
        masks = []
        for number, word in enumerate(found.words, start=1):
            if (mask := classes == number).any():
                picture = cut_out(image, mask, class_colours(np.array(number)))
                masks.append((picture, f"{word}: {mask.mean():.0%}"))
        return overlay(np.asarray(image), classes), tiles(masks), describe(found, len(masks))

    def describe(found, count):
        low, high = found.span()
        lines = [
            f"{count} of {len(found.words)} words found. Over the mean of all words the best one's cosine leads by {low:.2f} "
            f"(threshold 0) to {high:.2f} (threshold 1)."
        ]
        if unknown := embedder.unknown_words(", ".join(found.words)):
            lines.append(f"⚠️ Never taught: **{', '.join(unknown)}**. What the model shows for them is a guess.")
        return "\n\n".join(lines)

    with page(TITLE, SEEING + ("" if name else BUNDLED)) as blocks:
        visit = session_state()
        with gr.Row(equal_height=False):
            with gr.Column():
                image = unopened(gr.Image(label="Image", elem_id="image", **UPLOAD))
                text = gr.Textbox(
                    ", ".join(SCENE_CLASSES),
                    label=f"Words or phrases, with commas between them (at most {LIMITS.max_prompts})",
                    max_lines=4,
                    elem_id="words",
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Column():
                result = gr.Image(label="Where the words are", elem_id="result", **RESULT)
                message = gr.Markdown(elem_id="message")
                threshold = gr.Slider(
                    0, 1, THRESHOLD, step=0.01, label="Threshold: how far the best word must lead", elem_id="threshold"
                )
                detail = gr.Slider(1, FINEST, DETAIL, step=1, label="Detail: the finest scale", elem_id="detail")
        masks = gr.HTML(elem_id="masks", padding=False)
        choices = examples(scenes)
        settings, results = [detail, threshold], [result, masks, message]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": result}
        given = {"fn": segment, "inputs": [visit, text, *settings], "outputs": [*results, visit], **network}
        opened = image.upload(open_upload, image, [image, visit])
        opened.failure(lambda: (None, None, "", "", None), None, [image, *results, visit])
        opened.success(**given)
        button.click(**given)
        text.submit(**given)
        detail.change(**given, trigger_mode="always_last")
        threshold.change(paint, [visit, threshold], results, **QUICK)
        choices.click(open_example, [choices, *settings], [text, image, *results, visit], **network)
        blocks.load(lambda *values: open_example(0, *values), settings, [text, image, *results, visit], **network)
    return blocks


if __name__ == "__main__":
    launch(build())
