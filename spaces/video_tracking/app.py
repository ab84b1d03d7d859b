"""Video tracking: mark an object in the first frame and follow it through the clip."""

import os
import tempfile
from dataclasses import replace

import gradio as gr
import numpy as np

from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.pipelines.inputs import InputError, read_clip
from dinov3_hf.pipelines.tracking import Clip, Selection, draw_mask, follow, write_video
from dinov3_hf.spaces.layout import (
    QUICK,
    RESULT,
    UPLOADS,
    examples,
    launch,
    on_gpu,
    page,
    plain_messages,
    session_state,
    unopened,
    used_once,
)


TITLE = "Video tracking"
SEEING = (
    "**Click** on an object in the first frame, then follow it: in every frame each patch takes the mask of the patches "
    "before it that it resembles most. The network was never taught what an object is, nor that anything moves."
)
KINDS = [("On the object", "on"), ("Background", "background"), ("Corners of a box", "corner")]
EXAMPLE_FRAMES, EXAMPLE_RATE, CLIP_SIDE = 8, 4, 512
# Patches along the longer side: how finely the network looks.
FINEST, STEP, DEFAULT = 64, 8, 32


def draw(visit: tuple[Clip, Selection] | None, threshold: float):
    """Return the first frame with its mask and clicks, and a sentence."""
    if visit is None:
        return None, ""
    clip, object_ = visit
    mask = object_.mask(threshold)
    share = "no mask yet" if mask is None else f"the mask covers {mask.double().mean():.0%} of the first"
    return object_.draw(threshold), f"{len(clip)} frames; {share}."


def build(model: str | None = None) -> gr.Blocks:
    """Build the page for a model of any layout; by default that of DINOV3_MODEL, or the bundled one."""
    encoder = Encoder.from_pretrained(model or os.environ.get("DINOV3_MODEL"))
    encode = on_gpu(lambda image, patches: encoder.tokens(image, patches * encoder.patch_size).cpu())
    rows = load_scenes("validation", 3 * EXAMPLE_FRAMES, "clips", image_size=512)
    clips = [rows[start : start + EXAMPLE_FRAMES] for start in range(0, len(rows), EXAMPLE_FRAMES)]

    @on_gpu
    def masks(clip, mask, patches):
        frames = (clip[number] for number in range(len(clip)))
        yield from follow(encoder, frames, mask, patches * encoder.patch_size)

    def show(clip, patches, threshold, clicks=()):
        visit = clip, Selection(clip[0], encode(clip[0], patches), clicks)
        return *draw(visit, threshold), visit, None

    def open_example(index, *settings):
        nearest = np.argwhere(np.asarray(clips[index]["instances"][0]) == 1)
        click = "on", np.median(nearest, axis=0).astype(int)[::-1].tolist()
        return show(Clip.of(clips[index]["image"], EXAMPLE_RATE), *settings, clicks=(click,))

    @plain_messages()
    def open_upload(path, *settings):
        with used_once(path):
            clip = Clip.of(*read_clip(path, CLIP_SIDE))
        return show(clip, *settings)

    def change_resolution(visit, *settings):
        return show(visit[0], *settings, visit[1].clicks) if visit else (None, "", None, None)

    def click(visit, kind, threshold, event: gr.SelectData):
        visit = visit and (visit[0], visit[1].click(kind, event.index))
        return *draw(visit, threshold), visit

    def forget(visit, threshold):
        visit = visit and (visit[0], replace(visit[1], clicks=()))
        return *draw(visit, threshold), visit

    def track(visit, patches, threshold, progress=gr.Progress()):  # noqa: B008
        with plain_messages():
            clip, mask = (visit[0], visit[1].mask(threshold)) if visit else (None, None)
            if mask is None:
                raise InputError("Click on an object in the first frame, or on two corners of a box around it.")
        found = []
        for labels in masks(clip, mask, patches):
            found.append(labels.byte())
            progress((len(found), len(clip)), desc="Following", unit="frames")
            # Between frames a visitor can stop.
            yield None, f"Frame {len(found)} of {len(clip)}"
        with tempfile.NamedTemporaryFile(dir=UPLOADS, suffix=".mp4", delete=False) as file:
            write_video((draw_mask(clip[number], labels) for number, labels in enumerate(found)), clip.rate, file.name)
        yield file.name, f"Followed through {len(found)} frames; seen in {sum(mask.any().item() for mask in found)}."

    with page(TITLE, SEEING) as blocks:
        visit = session_state()
        with gr.Row():
            with gr.Column(min_width=300):
                frame = gr.Image(label="First frame: click in it", elem_id="frame", **RESULT | {"format": "jpeg"})
                text = gr.Markdown(elem_id="text")
                kind = gr.Radio(KINDS, value="on", label="My clicks are", elem_id="kind")
                with gr.Row():
                    upload = unopened(gr.UploadButton("Upload a clip", elem_id="upload", min_width=120))
                    clear = gr.Button("Forget clicks", elem_id="clear", min_width=120)
            with gr.Column(min_width=300):
                with gr.Row():
                    start = gr.Button("Follow", variant="primary", elem_id="start", min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", min_width=120)
                video = gr.Video(label="Followed", autoplay=True, loop=True, interactive=False, elem_id="video")
                progress = gr.Markdown(elem_id="progress")
        with gr.Row():
            threshold = gr.Slider(
                0, 0.95, 0.2, step=0.05, label="How alike to my clicks the object is", elem_id="threshold"
            )
            patches = gr.Slider(
                STEP, FINEST, DEFAULT, step=STEP, label="Resolution: patches along the longer side", elem_id="patches"
            )
        choices = examples([clip["image"][0] for clip in clips])
        settings, results = [patches, threshold], [frame, text, visit, video]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": frame}
        blocks.load(lambda *given: open_example(0, *given), settings, results, **network)
        choices.click(open_example, [choices, *settings], results, **network)
        upload.upload(open_upload, [upload, *settings], results, **network)
        patches.change(change_resolution, [visit, *settings], results, trigger_mode="always_last", **network)
        frame.select(click, [visit, kind, threshold], results[:3], **QUICK)
        clear.click(forget, [visit, threshold], results[:3], **QUICK)
        threshold.input(draw, [visit, threshold], results[:2], **QUICK)
        one = {"concurrency_id": "following", "concurrency_limit": 1, "show_progress_on": video}
        following = start.click(track, [visit, *settings], [video, progress], **one)
        # Said once it has stopped, so that no frame comes after it.
        stop.click(None, cancels=following).then(lambda: "Stopped.", None, progress, show_progress="hidden")
    return blocks


if __name__ == "__main__":
    launch(build())
