"""Video tracking: mark an object in the first frame and track it through the clip."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr
import numpy as np
import torch
from PIL import Image

from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.pipelines.inputs import InputError, read_clip
from dinov3_hf.pipelines.tracking import Clip, Selection, draw_mask, follow, write_video
from dinov3_hf.spaces import layout


TITLE = "Video tracking"
SEEING = (
    "**Click** an object in the first frame, then track it: in every frame each patch gets the mask of the most "
    "similar patches of the frames before. The network was not trained for tracking, and only on single images."
)
KINDS = [("Object", "on"), ("Background", "background"), ("Box corners", "corner")]
# What the server keeps of a visit.
Visit = tuple[Clip, Selection]
# The kind of a click, and the clicked point (x, y) in pixels.
Click = tuple[str, tuple[int, int]]
# What handlers return: the first frame, a text and the visit.
Shown = tuple[Image.Image | None, str, Visit | None]
# The same, and no tracked clip yet.
Opened = tuple[Image.Image | None, str, Visit | None, None]
EXAMPLE_FRAMES, EXAMPLE_RATE, CLIP_SIDE = 8, 4, 512
# Numbers of patches along the longer side.
FINEST, STEP, DEFAULT = 64, 8, 32


def draw(visit: Visit | None, threshold: float) -> tuple[Image.Image | None, str]:
    """Return the first frame with its mask and clicks, and a text."""
    if visit is None:
        return None, ""
    clip, object_ = visit
    mask = object_.mask(threshold)
    share = "no mask yet" if mask is None else f"the mask covers {mask.double().mean():.0%} of the first one"
    return object_.draw(threshold), f"{len(clip)} frames; {share}."


def build(model: str | None = None) -> gr.Blocks:
    """Build the page for a model in any layout; by default the one named by DINOV3_MODEL, or the bundled one."""
    encoder = Encoder.from_pretrained(model or os.environ.get("DINOV3_MODEL"))
    encode = layout.on_gpu(lambda image, patches: encoder.tokens(image, patches * encoder.patch_size).cpu())
    rows = load_scenes("validation", 3 * EXAMPLE_FRAMES, "clips", image_size=512)
    clips = [rows[start : start + EXAMPLE_FRAMES] for start in range(0, len(rows), EXAMPLE_FRAMES)]

    @layout.on_gpu
    def masks(clip: Clip, mask: torch.Tensor, patches: int) -> Iterator[torch.Tensor]:
        frames = (clip[number] for number in range(len(clip)))
        yield from follow(encoder, frames, mask, patches * encoder.patch_size)

    def show(clip: Clip, patches: int, threshold: float, clicks: tuple[Click, ...] = ()) -> Opened:
        visit = clip, Selection(clip[0], encode(clip[0], patches), clicks)
        return *draw(visit, threshold), visit, None

    def open_example(index: int, patches: int, threshold: float) -> Opened:
        nearest = np.argwhere(np.asarray(clips[index]["instances"][0]) == 1)
        click = "on", np.median(nearest, axis=0).astype(int)[::-1].tolist()
        return show(Clip.of(clips[index]["image"], EXAMPLE_RATE), patches, threshold, clicks=(click,))

    @layout.plain_messages()
    def open_upload(path: str | None, patches: int, threshold: float) -> Opened:
        with layout.used_once(path):
            clip = Clip.of(*read_clip(path, CLIP_SIDE))
        return show(clip, patches, threshold)

    def change_resolution(visit: Visit | None, patches: int, threshold: float) -> Opened:
        return show(visit[0], patches, threshold, visit[1].clicks) if visit else (None, "", None, None)

    def click(visit: Visit | None, kind: str, threshold: float, event: gr.SelectData) -> Shown:
        visit = visit and (visit[0], visit[1].click(kind, event.index))
        return *draw(visit, threshold), visit

    def reset_points(visit: Visit | None, threshold: float) -> Shown:
        visit = visit and (visit[0], replace(visit[1], clicks=()))
        return *draw(visit, threshold), visit

    def track(
        visit: Visit | None, patches: int, threshold: float, progress: gr.Progress = layout.PROGRESS
    ) -> Iterator[tuple[str | None, str]]:
        with layout.plain_messages():
            mask = visit[1].mask(threshold) if visit else None
            if visit is None or mask is None:
                raise InputError("Click an object in the first frame, or two corners of a box around it.")
        clip, _ = visit
        maps = []
        for labels in masks(clip, mask, patches):
            maps.append(labels.byte())
            progress((len(maps), len(clip)), desc="Tracking", unit="frames")
            # The button "Stop" takes effect here, between frames.
            yield None, f"Frame {len(maps)} of {len(clip)}"
        with tempfile.NamedTemporaryFile(dir=layout.UPLOADS, suffix=".mp4", delete=False) as file:
            write_video((draw_mask(clip[number], labels) for number, labels in enumerate(maps)), clip.rate, file.name)
        yield file.name, f"Tracked through {len(maps)} frames; visible in {sum(mask.any().item() for mask in maps)}."

    with layout.page(TITLE, SEEING) as blocks:
        visit = layout.session_state()
        with gr.Row():
            with gr.Column(min_width=300):
                frame = gr.Image(
                    label="First frame (click to mark an object)",
                    elem_id="frame",
                    **layout.RESULT | {"format": "jpeg"},
                )
                text = gr.Markdown(elem_id="text")
                kind = gr.Radio(KINDS, value="on", label="Clicks mark", elem_id="kind")
                with gr.Row():
                    upload = layout.unopened(gr.UploadButton("Upload a clip", elem_id="upload", min_width=120))
                    clear = gr.Button("Reset points", elem_id="clear", min_width=120)
            with gr.Column(min_width=300):
                with gr.Row():
                    start = gr.Button("Track", variant="primary", elem_id="start", min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", min_width=120)
                video = gr.Video(label="Tracked clip", autoplay=True, loop=True, interactive=False, elem_id="video")
                progress = gr.Markdown(elem_id="progress")
        with gr.Row():
            info = "Higher: the mask only covers patches more similar to the clicked ones"
            threshold = layout.explained_slider(0, 0.95, 0.2, 0.05, "Mask threshold", info, "threshold")
            patches = layout.resolution(FINEST, STEP, DEFAULT)
        choices = layout.examples([clip["image"][0] for clip in clips])
        settings, results = [patches, threshold], [frame, text, visit, video]
        network = {"concurrency_id": "network", "concurrency_limit": 2, "show_progress_on": frame}
        blocks.load(lambda *given: open_example(0, *given), settings, results, **network)
        choices.click(open_example, [choices, *settings], results, **network)
        upload.upload(open_upload, [upload, *settings], results, **network)
        patches.change(change_resolution, [visit, *settings], results, trigger_mode="always_last", **network)
        frame.select(click, [visit, kind, threshold], results[:3], **layout.QUICK)
        clear.click(reset_points, [visit, threshold], results[:3], **layout.QUICK)
        threshold.input(draw, [visit, threshold], results[:2], **layout.QUICK)
        one = {"concurrency_id": "tracking", "concurrency_limit": 1, "show_progress_on": video}
        tracking = start.click(track, [visit, *settings], [video, progress], **one)
        # Shown only after tracking has stopped, so that no frame overwrites it.
        stop.click(None, cancels=tracking).then(lambda: "Stopped.", None, progress, show_progress="hidden")
    return blocks


if __name__ == "__main__":
    layout.launch(build())
