"""Preprocessing of images for a network: resized and cropped, or resized whole, then standardised."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..errors import Refused
from .columns import undecoded
from .pixels import BadImage, read_size


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to `resize_size`, crop the centre to `image_size`, normalise.

    Sizes in pixels, statistics on the 0..1 scale; the paper's protocol is 256, then 224. Raises `Refused` for a crop
    larger than the resized image.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize_size:
            raise Refused(f"resize_size: got {self.resize_size}, accepted: at least image_size ({self.image_size})")

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """Resize (bicubic, antialiased) and crop one uint8 image [3,H,W] to [3,S,S]."""
        image = F.resize(image, [self.resize_size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return F.center_crop(image, [self.image_size, self.image_size])

    def mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Resize (nearest pixel) and crop one integer mask [H,W] to [S,S], aligned with `image`."""
        # Nearest "exact" keeps pixel centres, as the image's resize does; float because integers have no kernel.
        mask = F.resize(mask[None].double(), [self.resize_size], interpolation=InterpolationMode.NEAREST_EXACT)
        return F.center_crop(mask, [self.image_size, self.image_size])[0].long()

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scale uint8 images [B,3,S,S] to 0..1 and standardise each channel."""
        return standardize(images, self.mean, self.std)

    def sizes(self, rows: "Dataset", image_column: str) -> list[tuple[int, int]]:
        """Return the height and width of the network's input for each row: all the same."""
        return [(self.image_size, self.image_size)] * len(rows)


@dataclass(frozen=True)
class WholeImage:
    """Resize the whole image, the shorter side to `image_size` and both sides to multiples of `patch_size`; normalise.

    Sizes in pixels, statistics on the 0..1 scale.
    """

    image_size: int
    patch_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the network's input for an image: multiples of the patch size."""
        scale = self.image_size / min(height, width)
        rows, columns = (max(1, round(side * scale / self.patch_size)) for side in (height, width))
        return rows * self.patch_size, columns * self.patch_size

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """Resize (bicubic, antialiased) one uint8 image [3,H,W]."""
        size = list(self.size(*image.shape[-2:]))
        return F.resize(image, size, interpolation=InterpolationMode.BICUBIC, antialias=True)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scale uint8 images [B,3,H,W] to 0..1 and standardise each channel."""
        return standardize(images, self.mean, self.std)

    def sizes(self, rows: "Dataset", image_column: str) -> list[tuple[int, int] | None]:
        """Return the height and width of the network's input for each row, None for files with unreadable headers."""
        return [size and self.size(*size) for size in image_sizes(rows, image_column)]


def image_sizes(rows: "Dataset", image_column: str) -> list[tuple[int, int] | None]:
    """Return the height and width of every image from the files' headers, None for a header that cannot be read."""
    sizes: list[tuple[int, int] | None] = []
    for batch in undecoded(rows.select_columns([image_column])).iter(1024):
        for value in batch[image_column]:
            try:
                sizes.append(read_size(value))
            except BadImage:
                sizes.append(None)
    return sizes


def standardize(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Scale uint8 images [B,3,H,W] to 0..1 and standardise each channel."""
    mean, std = (torch.tensor(value, device=images.device).view(3, 1, 1) for value in (mean, std))
    return (images.float() / 255 - mean) / std


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise `Refused` if the patches would not cover the image exactly."""
    if image_size < patch_size or image_size % patch_size:
        raise Refused(f"image_size: got {image_size}, accepted: a multiple of the model's patch size ({patch_size})")
