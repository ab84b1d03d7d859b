"""Labelled images read once, and the frozen features that a network and its two controls give for them."""

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm

from ..data.decoding import decode_image


# Side in pixels to which whole images are averaged down before they serve as the raw-pixel control: bounds its memory.
RAW_PIXELS_SIDE = 32


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network: shorter side to `resize_size`, centre crop, normalise.

    Sizes in pixels, statistics on the 0..1 scale; the paper's protocol is 256 then 224. Raises ValueError for a crop
    larger than the resized image.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if not 1 <= self.image_size <= self.resize_size:
            raise ValueError(f"resize_size: got {self.resize_size}, accepted: at least image_size ({self.image_size})")

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """Resize (bicubic, antialiased) and crop one uint8 image [3,H,W] to [3,S,S]."""
        image = F.resize(image, [self.resize_size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return F.center_crop(image, [self.image_size, self.image_size])

    def mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Resize (nearest pixel) and crop one integer mask [H,W] to [S,S], as `image` does."""
        # Nearest "exact" keeps pixel centres, as the image's resize does; float because integers have no kernel.
        mask = F.resize(mask[None].double(), [self.resize_size], interpolation=InterpolationMode.NEAREST_EXACT)
        return F.center_crop(mask, [self.image_size, self.image_size])[0].long()

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scale uint8 images [B,3,S,S] to 0..1 and standardise each channel."""
        mean, std = (torch.tensor(value, device=images.device).view(3, 1, 1) for value in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise ValueError where patches would not cover the image."""
    if image_size < patch_size or image_size % patch_size:
        raise ValueError(
            f"image_size: got {image_size}, accepted: a multiple of the model's patch size ({patch_size})"
        )


def check_column(rows, name: str, field: str) -> None:
    """Raise ValueError, listing the columns, where a data set has no column of this name."""
    if name not in rows.column_names:
        raise ValueError(f"{field}: got {name!r}, accepted: a column of the data set ({', '.join(rows.column_names)})")


def undecoded(rows):
    """Return a data set whose image columns give their bytes or paths."""
    from datasets import Image

    for column, feature in rows.features.items():
        if isinstance(feature, Image) and feature.decode:
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def read_batches(
    rows,
    image_column: str,
    target_column: str,
    read_target: Callable[[object], torch.Tensor],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: bool = True,
    description: str = "images",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode a `datasets.Dataset` in its order, `batch_size` rows at a time, skipping rows that cannot be decoded.

    Yields normalised images [B,3,S,S] and their targets, stacked.
    """
    rows = undecoded(rows.select_columns([image_column, target_column]))

    def read(value, target):
        try:
            return preprocessing.image(decode_image(value)), read_target(target)
        except (OSError, ValueError):
            return None

    bar = tqdm(total=len(rows), desc=description, unit="image", disable=not progress, dynamic_ncols=True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in rows.iter(batch_size):
            results = list(pool.map(read, batch[image_column], batch[target_column]))
            good = [result for result in results if result is not None]
            bar.update(len(results))
            if good:
                images, targets = (torch.stack(parts) for parts in zip(*good, strict=True))
                yield preprocessing.normalize(images), targets


def untrained_twin(model: nn.Module, seed: int) -> nn.Module:
    """Build the network of the same configuration with the random weights of `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = type(model)(copy.deepcopy(model.config))
    return twin.to(next(model.parameters()).device).eval()


def cls_features(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from images [B,3,S,S] to the class tokens [B,D] of `model`, fp32."""
    return _frozen(model, lambda output: output.pooler_output)


def patch_features(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from images [B,3,S,S] to the patch tokens [B,P,D] of `model`, fp32."""
    return _frozen(model, lambda output: output.patch_tokens)


def _frozen(model: nn.Module, pick: Callable) -> Callable[[torch.Tensor], torch.Tensor]:
    parameter = next(model.parameters())

    @torch.inference_mode()
    def features(pixel_values: torch.Tensor) -> torch.Tensor:
        model.eval()
        return pick(model(pixel_values.to(parameter.device, parameter.dtype))).float()

    return features


def raw_image_features(pixel_values: torch.Tensor) -> torch.Tensor:
    """Flatten normalised images [B,3,S,S], averaged down to at most 32 pixels a side, to [B,3*side*side]."""
    side = min(pixel_values.shape[-1], RAW_PIXELS_SIDE)
    return nn.functional.adaptive_avg_pool2d(pixel_values, side).flatten(1)


def raw_patch_features(patch_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from normalised images [B,3,S,S] to their patches' own pixels [B,P,3*p*p]."""
    return lambda pixel_values: nn.functional.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)
