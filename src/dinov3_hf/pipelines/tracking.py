"""Tracking an object through a clip from a mask in the first frame, by patch similarity (DINOv3, section 6.1.5)."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, max_pool2d, normalize

from ..errors import Refused
from ..visualization.classes import overlay
from ..visualization.features import mark_places
from .encoder import Encoder
from .label_propagation import LabelPropagation, Propagation, soft_labels


# The settings of the evaluation (METHOD: tracking).
PROPAGATION = Propagation(context_frames=7, radius=12, top_k=5, temperature=0.2)


def box_mask(size: tuple[int, int], corners: torch.Tensor) -> torch.Tensor:
    """Return the mask [H,W] (bool) of a box in an image of `size` (width, height), given two corners [2,2] (x, y)."""
    (left, top), (right, bottom) = corners.amin(0).floor().tolist(), corners.amax(0).floor().tolist()
    x, y = torch.arange(size[0]), torch.arange(size[1])
    return ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))


def similar_mask(
    tokens: torch.Tensor,
    size: tuple[int, int],
    on: torch.Tensor,
    background: torch.Tensor | None = None,
    threshold: float = 0.2,
) -> torch.Tensor:
    """Return the mask [H,W] (bool) of the clicked object in an image of `size` (width, height) with tokens [h,w,D].

    Takes points `on` the object [K,2] and on the `background` [L,2], (x, y) in pixels. A patch belongs to the object
    if its cosine similarity with a point on the object is above `threshold` and above that with all background points,
    and if it is connected with such a point. The mean token of the image is subtracted before, and the mask is
    interpolated between patches.
    """
    tokens = tokens.float()
    tokens = normalize(tokens - tokens.mean((0, 1)), dim=2)
    rows, columns, _ = tokens.shape

    def nearest(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the largest cosine [h,w] with any patch at the points [K,2], and a map [h,w] of these patches."""
        x, y = (points / torch.tensor(size) * torch.tensor([columns, rows])).long().T
        clicked = torch.zeros(rows, columns)
        clicked[y.clamp(0, rows - 1), x.clamp(0, columns - 1)] = 1
        return (tokens @ tokens[clicked.bool()].T).amax(2), clicked

    alike, reached = nearest(on)
    margin = alike - threshold
    if background is not None and len(background):
        margin = margin.minimum(alike - nearest(background)[0])
    inside, before = (margin > 0).float(), None
    while before is None or not torch.equal(before, reached):
        before, reached = reached, _grow(reached) * inside
    # Patches next to the object keep their margins, so that the interpolated edge lies where the margin is 0.
    margin = torch.where(_grow(reached) > 0, margin, -1.0)
    return interpolate(margin[None, None], size[::-1], mode="bilinear")[0, 0] > 0


def _grow(cells: torch.Tensor) -> torch.Tensor:
    """Dilate a map [h,w] of 0 and 1 by one cell in all eight directions."""
    return max_pool2d(cells[None, None], 3, stride=1, padding=1)[0, 0]


def draw_mask(image: Image.Image, mask: torch.Tensor) -> Image.Image:
    """Overlay a map [H,W] of object numbers on an RGB image; 0 is not coloured."""
    return Image.fromarray(overlay(np.asarray(image), mask.long().numpy()))


@dataclass(frozen=True)
class Selection:
    """An object selected by clicks in an RGB image with tokens [h,w,D].

    A click is a kind and a point (x, y) in pixels; the kind is "on" (the object), "background", or "corner" (of a box
    around the object).
    """

    image: Image.Image
    tokens: torch.Tensor
    clicks: tuple[tuple[str, tuple[int, int]], ...] = ()

    def click(self, kind: str, place: Sequence[int]) -> "Selection":
        """Add a click. A corner replaces other clicks, these replace corners, and a third corner starts a new box."""
        kept = [click for click in self.clicks if (click[0] == "corner") == (kind == "corner")]
        kept = [] if kind == "corner" and len(kept) == 2 else kept
        x, y = place
        return replace(self, clicks=(*kept, (kind, (x, y))))

    def mask(self, threshold: float) -> torch.Tensor | None:
        """Return the mask [H,W] (bool) of the box, or the `similar_mask` of the clicks; `None` without either."""
        on, background, corners = (
            torch.tensor([place for kind, place in self.clicks if kind == asked])
            for asked in ("on", "background", "corner")
        )
        if len(corners) == 2:
            return box_mask(self.image.size, corners)
        return similar_mask(self.tokens, self.image.size, on, background, threshold) if len(on) else None

    def draw(self, threshold: float) -> Image.Image:
        """Draw the mask over the image, and a ring around each click."""
        mask, places = self.mask(threshold), torch.tensor([place for _, place in self.clicks]).reshape(-1, 2)
        return mark_places(self.image if mask is None else draw_mask(self.image, mask), places)


def follow(
    encoder: Encoder,
    frames: Iterable[Image.Image],
    mask: torch.Tensor,
    side: int,
    settings: Propagation = PROPAGATION,
) -> Iterator[torch.Tensor]:
    """Yield for each RGB frame a map [H,W] of object numbers, given the `mask` [H,W] of the first frame.

    The mask is 0 or False on the background. All frames have one size; their longer side is resized to `side` pixels
    for the network. Maps are computed one by one, as they are asked for. Raises `Refused` for a mask of another size.
    """
    mask, carried = mask.long(), None
    for frame in frames:
        if mask.shape != (frame.height, frame.width):
            raise Refused(f"mask: got shape {tuple(mask.shape)}, accepted: {(frame.height, frame.width)}, as frames")
        tokens = encoder.tokens(frame, side)
        grid = tokens.shape[:2]
        if carried is None:
            labels = soft_labels(mask, int(mask.max()) + 1, grid).to(tokens)
            carried = LabelPropagation(tokens.flatten(0, 1), labels, grid, settings)
            yield mask
            continue
        soft = carried.step(tokens.flatten(0, 1)).T.unflatten(1, grid)
        yield interpolate(soft[None], mask.shape, mode="bilinear")[0].argmax(0).cpu()


@dataclass(frozen=True)
class Clip:
    """Frames of one size, kept in memory as JPEG (a twentieth of their decoded size), and the frames per second."""

    frames: list[bytes]
    rate: float

    @classmethod
    def of(cls, frames: Sequence[Image.Image], rate: float) -> "Clip":
        """Store RGB frames, resized to the size of the first one."""
        files = []
        for frame in frames:
            buffer = io.BytesIO()
            frame.resize(frames[0].size).save(buffer, "JPEG", quality=95)
            files.append(buffer.getvalue())
        return cls(files, rate)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> Image.Image:
        return Image.open(io.BytesIO(self.frames[number])).convert("RGB")


def write_video(frames: Iterable[Image.Image], rate: float, path: str | os.PathLike) -> None:
    """Write RGB frames of one size to an MP4 file that all browsers play (H.264, 4:2:0), one by one."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("h264", Fraction(rate).limit_denominator(1000))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "20", "preset": "veryfast"}
        for number, frame in enumerate(frames):
            if number == 0:
                # 4:2:0 video needs even sides.
                size = frame.width + frame.width % 2, frame.height + frame.height % 2
                stream.width, stream.height = size
            container.mux(stream.encode(av.VideoFrame.from_image(frame.resize(size))))
        container.mux(stream.encode())
