"""Batches of images with one of their captions, depending only on seed, step and position in the global batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

from dinov3_hf.data.captions import find_caption_columns, read_captions
from dinov3_hf.data.columns import find_image_column
from dinov3_hf.data.pixels import decode_image
from dinov3_hf.training.batches.augment import draw_box
from dinov3_hf.training.batches.collate import StreamBatches

from .arguments import CaptionArguments


if TYPE_CHECKING:
    import datasets

    from dinov3_hf.models.tokenization_dinotxt import DinoTxtTokenizer

# A constant that gives captions and crops an independent random stream under the same seed.
CAPTIONS = 0xCA97
# A column of a feature cache: the backbone's tokens [N, D] of an image, as the bytes of an fp16 array.
TOKENS = "vision_tokens"


def drop_words(caption: str, share: float, rng: np.random.Generator) -> str:
    """Drop each word with probability `share`, but keep at least one."""
    words = caption.split()
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= share]
    return " ".join(kept or [words[int(rng.integers(len(words)))]])


class ImageTransform:
    """Convert decoded images uint8 [3,H,W] to normalised pixels [3,S,S], as transformers' image processor does."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], crop_scale: list[float] | None = None):
        self.size, self.crop_scale = size, crop_scale
        self.mean, self.std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))

    def __call__(self, image: torch.Tensor, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Resize and normalise the whole image, or with `crop_scale` and `rng` a random crop."""
        if self.crop_scale and rng is not None:
            top, left, height, width = draw_box(image.shape[-2], image.shape[-1], self.crop_scale, rng)
            image = image[:, top : top + height, left : left + width]
        pixels = interpolate(image[None].float() / 255, (self.size, self.size), mode="bilinear", antialias=True)[0]
        return (pixels - self.mean) / self.std


class CaptionBatches(StreamBatches):
    """Batches of pairs: input_ids [B,N] and pixel_values [B,3,S,S], or vision_tokens [B,T,D] from a feature cache.

    `width` is D; further arguments are those of `StreamBatches` from batch_size on.
    """

    data: CaptionArguments

    def __init__(
        self,
        rows: "datasets.Dataset | datasets.IterableDataset | list[datasets.Dataset | datasets.IterableDataset]",
        data: CaptionArguments,
        transform: ImageTransform,
        tokenizer: "DinoTxtTokenizer",
        width: int,
        *args: int,
    ):
        super().__init__(rows, data, *args)
        self.transform, self.tokenizer, self.width = transform, tokenizer, width
        self.caption_columns = [find_caption_columns(source, data.caption_columns) for source in self.sources]
        self.image_columns = [
            TOKENS if TOKENS in source.column_names else find_image_column(source, data.image_column)
            for source in self.sources
        ]

    def read(self, row: dict, source: int) -> tuple[torch.Tensor, list[str]]:
        captions = read_captions(row, self.caption_columns[source])
        value = row[self.image_columns[source]]
        if self.image_columns[source] == TOKENS:
            return torch.frombuffer(bytearray(value), dtype=torch.float16).view(-1, self.width), captions
        return decode_image(value), captions

    def make_batch(self, examples: list, places: range, step: int) -> dict:
        generators = [np.random.default_rng([self.seed, CAPTIONS, step, place]) for place in places]
        texts = []
        for (_, captions), rng in zip(examples, generators, strict=True):
            text = captions[int(rng.integers(len(captions)))]
            texts.append(drop_words(text, self.data.word_dropout, rng) if self.data.word_dropout else text)
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        images = [image for image, _ in examples]
        if images[0].dtype == torch.float16:
            return {"input_ids": ids, TOKENS: torch.stack(images).float()}
        pixels = [self.transform(image, rng) for image, rng in zip(images, generators, strict=True)]
        return {"input_ids": ids, "pixel_values": torch.stack(pixels)}
