"""Image search by an image, or by words if the model has a text tower: exact cosine search, one feature per image."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch.nn.functional import normalize

from ..checkpoints import load_aligned, tiny_checkpoint
from ..checkpoints.processors import processor_for
from ..data.columns import find_image_column
from ..data.pixels import BadImage, decode_image
from ..data.streams import load_source
from ..errors import Refused
from ..models.modeling_dinotxt import DinoTxtModel
from ..models.modeling_dinov3 import Dinov3Model
from ..models.pixel_values_dinov3 import Range
from .class_embeddings import text_features, unknown_words
from .encoder import Encoder, is_aligned
from .inputs import InputError


if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase


PICTURE_SIDE = 256


@dataclass(frozen=True)
class Embedder:
    """A frozen model, its image processor, and its tokenizer (`None` if it has no text tower)."""

    model: Dinov3Model | DinoTxtModel
    image_processor: "BaseImageProcessor"
    tokenizer: "PreTrainedTokenizerBase | None" = None

    @classmethod
    def from_pretrained(cls, name: str | None = None) -> "Embedder":
        """Load a model as `Encoder` does, but with its text tower, if any; `None` loads the bundled aligned model."""
        name = name or tiny_checkpoint("text")
        if not is_aligned(name):
            network = Encoder.from_pretrained(name).network
            return cls(network, processor_for(name, network.config.image_size))
        model, processor = load_aligned(name)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return cls(model, processor.image_processor, processor.tokenizer)

    @property
    def value_range(self) -> Range | None:
        """What is black and white in images of more than 8 bits, as `decode_image` takes it."""
        return getattr(self.image_processor, "value_range", None)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return normalised features [B,E] of RGB images: class tokens, or with a text tower its image features."""
        pixel_values = self.image_processor(list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        if self.tokenizer is None:
            return normalize(self.model(pixel_values).pooler_output, dim=1).cpu()
        return normalize(self.model.get_image_features(pixel_values), dim=1).cpu()

    def text(self, text: str) -> torch.Tensor:
        """Return the normalised feature [E] of a text; raises `Refused` if the model has no text tower."""
        if self.tokenizer is None:
            raise Refused(f"text: got {text!r:.80}, accepted: only with a model that has a text tower")
        return normalize(text_features(self.model, self.tokenizer, [text])[0], dim=0).cpu()

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that did not occur in the text tower's training captions, if this is known."""
        return unknown_words(self.tokenizer, [text])


@dataclass(frozen=True)
class ImageIndex:
    """Normalised features [N,E] of N images, and their thumbnails as JPEG files."""

    features: torch.Tensor
    pictures: list[bytes]

    @classmethod
    def of(
        cls,
        embed: Callable[[Sequence[Image.Image]], torch.Tensor],
        images: Iterable[Image.Image],
        batch_size: int = 32,
    ) -> "ImageIndex":
        """Build an index of RGB images with an `embed` function as `Embedder.images`.

        Only `batch_size` images are in memory at once. Raises `InputError` if there are no images.
        """
        images, features = iter(images), []
        pictures: list[bytes] = []
        while batch := list(islice(images, batch_size)):
            features.append(embed(batch))
            pictures += map(_shrink, batch)
        if not features:
            raise InputError("There is no image here that can be read (PNG, JPEG, WebP, ...).")
        return cls(torch.cat(features), pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def nearest(self, query: torch.Tensor, count: int) -> tuple[list[int], list[float]]:
        """Return the rows and cosines of the `count` images most similar to a normalised query [E], best first."""
        best = (self.features @ query).sort(descending=True, stable=True)
        return best.indices[:count].tolist(), best.values[:count].tolist()

    def picture(self, row: int) -> Image.Image:
        """Return the thumbnail of a row."""
        return Image.open(io.BytesIO(self.pictures[row]))


def _shrink(image: Image.Image) -> bytes:
    buffer, small = io.BytesIO(), image.copy()
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def source_images(
    source: str, split: str, count: int, max_side: int, value_range: Range | None = None
) -> Iterator[Image.Image]:
    """Yield the first `count` images of any source that `load_source` reads, as RGB.

    They are shrunk to `max_side` pixels if larger; images that cannot be decoded are skipped.
    """
    rows = load_source(source, split, num_images=count)
    column = find_image_column(rows, None)
    for row in islice(rows, count):
        try:
            pixels = decode_image(row[column], value_range=value_range)
        except (BadImage, OSError):
            continue
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
        yield image
