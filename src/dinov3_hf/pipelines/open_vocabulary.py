"""Segmentation by words that a user types, in two steps: the slow one of the network, and a fast threshold."""

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
    """For every pixel of an image the index of the most similar word [H,W], and its margin over the mean of all words.

    `lead` [H,W] is the cosine similarity with that word minus the mean of the cosines with all words.
    """

    words: tuple[str, ...]
    best: torch.Tensor
    lead: torch.Tensor

    def span(self) -> tuple[float, float]:
        """Return the 1st and 99th percentile of the lead over all pixels."""
        # By numpy, because torch.quantile takes at most 16 million values.
        low, high = np.percentile(self.lead.float().numpy(), (1, 99)).tolist()
        return low, high

    def classes(self, threshold: float) -> torch.Tensor:
        """Return 1 + the index of the best word [H,W], or 0 (background) where its lead is below `threshold`.

        The threshold is relative to the `span` of this image: 0 is the low end, 1 the high end. (Leads depend on the
        model and on the number of words, so no fixed threshold in cosines suits all.)
        """
        low, high = self.span()
        return torch.where(self.lead.float() >= low + threshold * (high - low), self.best.long() + 1, 0)


def check_words(embedder: Embedder) -> Embedder:
    """Return the embedder; raises `Refused` if its model has no text tower."""
    if embedder.tokenizer is None:
        got = type(embedder.model).__name__
        raise Refused(f"model: got a {got}, accepted: a model with a text tower (dinov3 align writes one)")
    return embedder


def map_words(embedder: Embedder, image: Image.Image, words: Sequence[str], detail: int) -> WordMap:
    """Compare an RGB image with words at `detail` scales: 1, 2, ... `detail` windows along its shorter side.

    Windows have the size of the training images; the similarity of whole windows is added (see `window_logits`). With
    a single word the lead is the cosine itself.
    """
    model, window = embedder.model, window_and_stride(embedder.model)[0]
    shorter, patch = min(image.size), model.vision_model.config.patch_size
    seen = image.resize(
        [max(1, round(side * window * detail / shorter)) for side in image.size], Image.Resampling.BICUBIC
    )
    pixel_values = fit_image(seen, embedder.image_processor, window, patch)
    patches, whole = (class_embeddings(model, embedder.tokenizer, words, part=part) for part in ("patch", "image"))
    scales = [step / detail for step in range(1, detail + 1)]
    maps = class_maps(model, pixel_values, patches, scales=scales, size=image.size[::-1], image_embeddings=whole)
    _, best, lead = best_class(maps)
    return WordMap(tuple(words), best.to(torch.uint8).cpu(), lead.half().cpu())
