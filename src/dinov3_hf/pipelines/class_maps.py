"""Similarity of every pixel of an image with class names (dino.txt; DINOv3, section 5.3)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate, normalize

from ..errors import Refused
from .windows import check_stride, check_window, window_starts


if TYPE_CHECKING:
    from transformers import BaseImageProcessor


# Number of patches in a batch of windows; limits the memory.
PATCHES_AT_ONCE = 4096


BACKGROUND = -1


def window_and_stride(model: nn.Module, window: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """Return the side and the stride of windows in pixels.

    By default the side is that of the training images, and the stride is 2/3 of the side. Raises `Refused` for values
    that are not multiples of the patch size, and for strides larger than the window.
    """
    config = model.config.vision_config
    patch, side = config.patch_size, config.image_size
    if window is None:
        side = side if isinstance(side, int) else min(side)
        window = max(patch, side // patch * patch)
    check_window(window, patch)
    if stride is None:
        stride = max(patch, round(window * 2 / 3 / patch) * patch)
    check_stride(stride, window, patch)
    return window, stride


def window_logits(
    model: nn.Module,
    pixel_values: torch.Tensor,
    embeddings: torch.Tensor,
    window: int,
    stride: int,
    image_embeddings: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cosine similarity of every patch with every class, averaged where windows overlap.

    Takes an image [1,3,H,W] whose sides are multiples of the patch size p, and embeddings [C,E/2]; returns
    [C,H/p,W/p]. With `image_embeddings` [C,E] the cosine of the whole window with each class is added to those of its
    patches, because a class that is not in the window is unlikely in any of its patches.
    """
    patch = model.config.vision_config.patch_size
    height, width = pixel_values.shape[-2:]
    high, wide = min(window, height), min(window, width)
    rows, columns = high // patch, wide // patch
    places = [(y, x) for y in window_starts(height, high, stride) for x in window_starts(width, wide, stride)]
    total = torch.zeros(len(embeddings), height // patch, width // patch, device=model.device)
    count = torch.zeros_like(total[0])
    embeddings = normalize(embeddings.to(model.device).float(), dim=-1)
    at_once = max(1, PATCHES_AT_ONCE // (rows * columns))
    for start in range(0, len(places), at_once):
        some = places[start : start + at_once]
        crops = torch.cat([pixel_values[..., y : y + high, x : x + wide] for y, x in some])
        given = {"pixel_values": crops.to(model.device, model.dtype)}
        if image_embeddings is not None:
            given = {"vision_tokens": model.tokens(**given)}
        features = model.get_patch_features(**given).float()
        scores = (normalize(features, dim=-1) @ embeddings.T).transpose(1, 2).unflatten(2, (rows, columns))
        if image_embeddings is not None:
            whole = normalize(model.get_image_features(**given).float(), dim=-1)
            scores = scores + (whole @ image_embeddings.to(whole.device).T)[..., None, None]
        for (y, x), score in zip(some, scores, strict=True):
            covered = slice(y // patch, y // patch + rows), slice(x // patch, x // patch + columns)
            total[:, *covered] += score
            count[covered] += 1
    return total / count


@torch.inference_mode()
def class_maps(
    model: nn.Module,
    pixel_values: torch.Tensor,
    embeddings: torch.Tensor,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    size: tuple[int, int] | None = None,
    image_embeddings: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the logits [H,W] of one class after the other, which needs less memory than `segment_logits` for all."""
    window, stride = window_and_stride(model, window, stride)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise Refused(f"scales: got {list(scales)}, accepted: at least one, each above 0")
    half = model.config.projection_dim // 2
    if embeddings.shape[1] != half:
        raise Refused(f"embeddings: got width {embeddings.shape[1]}, accepted: {half}, of class_embeddings' patches")
    model.eval()
    patch = model.config.vision_config.patch_size
    maps = []
    for scale in scales:
        sides = [max(patch, round(side * scale / patch) * patch) for side in pixel_values.shape[-2:]]
        image = pixel_values
        if sides != list(image.shape[-2:]):
            image = interpolate(image.float(), sides, mode="bilinear", antialias=True)
        maps.append(window_logits(model, image, embeddings, window, stride, image_embeddings))
    size = tuple(pixel_values.shape[-2:]) if size is None else size
    return (sum(_upsample(scores[index], size) for scores in maps) / len(maps) for index in range(len(embeddings)))


def _upsample(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return interpolate(scores[None, None], size, mode="bilinear")[0, 0]


def segment_logits(
    model: nn.Module,
    pixel_values: torch.Tensor,
    embeddings: torch.Tensor,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    size: tuple[int, int] | None = None,
    image_embeddings: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cosine similarity of every pixel with every class, from sliding windows at one or several scales.

    Takes a normalised image [1,3,H,W] and patch embeddings [C,E/2]; `window` and `stride` are in pixels. Logits are
    averaged over overlapping windows and over scales, and upsampled bilinearly; returns [C,H,W], or [C,*size]. With
    `image_embeddings` [C,E] the similarity of whole windows is added (see `window_logits`). Raises `Refused` for
    windows and strides that do not fit the patch size, and for embeddings of another width.
    """
    return torch.stack(
        list(class_maps(model, pixel_values, embeddings, window, stride, scales, size, image_embeddings))
    )


def best_class(logits: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each pixel's largest logit, its class, and its margin over the mean logit of all classes, each [H,W].

    Takes logits [C,H,W], or an iterator over [H,W]. With a single class the margin is the logit itself.
    """
    count = 0
    for scores in logits:
        if count == 0:
            best, classes = torch.full_like(scores, -torch.inf), torch.zeros_like(scores, dtype=torch.long)
            total = torch.zeros_like(scores)
        better = scores > best
        best = torch.where(better, scores, best)
        classes = classes.masked_fill(better, count)
        total, count = total + scores, count + 1
    return best, classes, best - total / count if count > 1 else best


def segment(logits: Iterable[torch.Tensor], background_threshold: float | None = None) -> torch.Tensor:
    """Return the class of every pixel [H,W], -1 for background, from logits [C,H,W] or an iterator over [H,W].

    A pixel is background if its largest logit is less than `background_threshold` above the mean logit of all classes.
    The margin is used, not the logit, because a patch that is similar to all names alike belongs to none of them.
    """
    _, classes, margin = best_class(logits)
    if background_threshold is not None:
        classes = classes.masked_fill(~(margin >= background_threshold), BACKGROUND)
    return classes


def fit_image(
    image: torch.Tensor | Image.Image, image_processor: "BaseImageProcessor", window: int, patch_size: int
) -> torch.Tensor:
    """Preprocess a whole image (uint8 [3,H,W] or PIL) with the image processor, without changing its aspect ratio.

    Sides are rounded to multiples of the patch size; if the shorter side is smaller than a window, the image is
    enlarged to it. Returns [1,3,H,W].
    """
    sides = (image.height, image.width) if isinstance(image, Image.Image) else tuple(image.shape[-2:])
    scale = max(1.0, window / min(sides))
    height, width = (max(patch_size, round(side * scale / patch_size) * patch_size) for side in sides)
    given = {} if isinstance(image, Image.Image) else {"input_data_format": "channels_first"}
    size = {"height": height, "width": width}
    return image_processor(image, size=size, do_resize=True, do_center_crop=False, return_tensors="pt", **given)[
        "pixel_values"
    ]
