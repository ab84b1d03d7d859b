"""An object marked in the first frame of a clip, followed through the others by patches alone (DINOv3, section 6.1.5)."""

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


# As evaluated (METHOD: tracking).
PROPAGATION = Propagation(context_frames=7, radius=12, top_k=5, temperature=0.2)


def box_mask(size: tuple[int, int], corners: torch.Tensor) -> torch.Tensor:
    """Return the mask [H,W] (bool) of the box between two corners [2,2], (x, y) in pixels, of an image (width, height)."""
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
    """Return the mask [H,W] (bool) of what was clicked in an image (width, height) with tokens [h,w,D].

    Takes clicks `on` the object [K,2] and on the `background` [L,2], (x, y) in pixels. The object is made of the patches
    connected to a click on it whose cosine with one is above `threshold` and above that with any background click;
    cosines are of tokens less their mean over the image, and interpolated between patches.
    """
    tokens = tokens.float()
    tokens = normalize(tokens - tokens.mean((0, 1)), dim=2)
    rows, columns, _ = tokens.shape

    def nearest(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosine [h,w] with the most similar of the patches at points [K,2], and which ones these are."""
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
    # Neighbours of the object keep what they have, so that its edge lies between patches where the cosine says.
    margin = torch.where(_grow(reached) > 0, margin, -1.0)
    return interpolate(margin[None, None], size[::-1], mode="bilinear")[0, 0] > 0


def _grow(cells: torch.Tensor) -> torch.Tensor:
    """Add to cells [h,w] of 0 and 1 their eight neighbours."""
    return max_pool2d(cells[None, None], 3, stride=1, padding=1)[0, 0]


def draw_mask(image: Image.Image, mask: torch.Tensor) -> Image.Image:
    """Lay a map [H,W] of object numbers over an RGB image; 0 leaves it as it is."""
    return Image.fromarray(overlay(np.asarray(image), mask.long().numpy()))


@dataclass(frozen=True)
class Selection:
    """An object of an RGB image with tokens [h,w,D], chosen by clicks: what they mark, and their places (x, y) in pixels.

    A click is "on" the object, on the "background", or one "corner" of a box around it.
    """

    image: Image.Image
    tokens: torch.Tensor
    clicks: tuple[tuple[str, tuple[int, int]], ...] = ()

    def click(self, kind: str, place: Sequence[int]) -> "Selection":
        """Add a click. A box takes the place of other clicks and they of a box; a third corner begins another box."""
        kept = [click for click in self.clicks if (click[0] == "corner") == (kind == "corner")]
        kept = [] if kind == "corner" and len(kept) == 2 else kept
        return replace(self, clicks=(*kept, (kind, tuple(place))))

    def mask(self, threshold: float) -> torch.Tensor | None:
        """Return the mask [H,W] (bool) of the box, or as `similar_mask`; None before there is a box or a click on the object."""
        on, background, corners = (
            torch.tensor([place for kind, place in self.clicks if kind == asked])
            for asked in ("on", "background", "corner")
        )
        if len(corners) == 2:
            return box_mask(self.image.size, corners)
        return similar_mask(self.tokens, self.image.size, on, background, threshold) if len(on) else None

    def draw(self, threshold: float) -> Image.Image:
        """Lay the mask over the image and ring the clicks."""
        mask, places = self.mask(threshold), torch.tensor([place for _, place in self.clicks]).reshape(-1, 2)
        return mark_places(self.image if mask is None else draw_mask(self.image, mask), places)


def follow(
    encoder: Encoder,
    frames: Iterable[Image.Image],
    mask: torch.Tensor,
    side: int,
    settings: Propagation = PROPAGATION,
) -> Iterator[torch.Tensor]:
    """Yield for each RGB frame, beginning with the first, the map [H,W] of the objects numbered in the first one's `mask`.

    `mask` [H,W] is 0 or False outside; frames are of one size, their longer side seen at `side` pixels. What comes is
    computed as it is asked for. Raises `Refused` for a mask of another size.
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
    """Frames of one size as JPEG files in memory, a twentieth of what they are decoded, and their rate a second."""

    frames: list[bytes]
    rate: float

    @classmethod
    def of(cls, frames: Sequence[Image.Image], rate: float) -> "Clip":
        """Keep RGB frames; those of another size than the first are resized to it."""
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
    """Write RGB frames of one size as an MP4 that every browser plays (H.264, 4:2:0), as they come."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("h264", Fraction(rate).limit_denominator(1000))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "20", "preset": "veryfast"}
        for number, frame in enumerate(frames):
            if number == 0:
                # Colours are stored for every second pixel: both sides are made even.
                size = stream.width, stream.height = tuple(side + side % 2 for side in frame.size)
            container.mux(stream.encode(av.VideoFrame.from_image(frame.resize(size))))
        container.mux(stream.encode())
