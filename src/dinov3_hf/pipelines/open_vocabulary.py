"""Segmentation by words that a person types, in two steps: the network's, and one that follows a slider."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..errors import Refused
from .class_embeddings import class_embeddings
from .class_maps import best_class, class_maps, fit_image, window_and_stride
from .search import Embedder


@dataclass(frozen=True)
class WordMap:
    """Of every pixel of an image the word that suits it best [H,W], and how far its cosine leads the mean of all words."""

    words: tuple[str, ...]
    best: torch.Tensor
    lead: torch.Tensor

    def span(self) -> tuple[float, float]:
        """Return the smallest and largest lead of the image, but for one pixel in a hundred at each end."""
        # numpy's percentiles, as torch's take at most 16 million values.
        low, high = np.percentile(self.lead.float().numpy(), (1, 99)).tolist()
        return low, high

    def classes(self, threshold: float) -> torch.Tensor:
        """Return 1 + the index of the best word [H,W], 0 where its lead is below `threshold`, 0..1 of the image's span.

        How far words lead depends on their number and on the model: a threshold in cosines would suit few of either.
        """
        low, high = self.span()
        return torch.where(self.lead.float() >= low + threshold * (high - low), self.best.long() + 1, 0)


def check_words(embedder: Embedder) -> Embedder:
    """Return the embedder; `Refused` where its model has no text tower."""
    if embedder.tokenizer is None:
        got = type(embedder.model).__name__
        raise Refused(f"model: got a {got}, accepted: a model with a text tower (dinov3 align writes one)")
    return embedder


def map_words(embedder: Embedder, image: Image.Image, words: Sequence[str], detail: int) -> WordMap:
    """Compare an RGB image with words at scales at which 1, 2, ... `detail` windows span its shorter side.

    A window is of the size of the images trained on; each also counts as a whole (see `window_logits`). Of one word alone
    the lead is the cosine itself.
    """
    model, window = embedder.model, window_and_stride(embedder.model)[0]
    shorter, patch = min(image.size), model.config.vision_config.patch_size
    seen = image.resize(
        [max(1, round(side * window * detail / shorter)) for side in image.size], Image.Resampling.BICUBIC
    )
    pixel_values = fit_image(seen, embedder.image_processor, window, patch)
    patches, whole = (class_embeddings(model, embedder.tokenizer, words, part=part) for part in ("patch", "image"))
    scales = [step / detail for step in range(1, detail + 1)]
    maps = class_maps(model, pixel_values, patches, scales=scales, size=image.size[::-1], image_embeddings=whole)
    _, best, lead = best_class(maps)
    return WordMap(tuple(words), best.to(torch.uint8).cpu(), lead.half().cpu())
