"""Multi-crop and its augmentations (DINO, section 3.1; DINOv3, appendix C).

Every random number comes from the generator of its image, so that a crop depends only on the seed, the step and the
position in the global batch, not on the rest of the batch. Crops are processed one after the other, in place and in
the range 0..255, so that their pixels stay in the processor's cache and are scaled once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from dinov3_hf.data.crops import central_crop, fitting_crop

from ..arguments import CropArguments


WHITE = 255.0
BLUR_SIGMA = (0.1, 2.0)
CROP_TRIES = 10
GREY = (0.2989, 0.587, 0.114)


@dataclass
class CropDraw:
    """The random choices for one crop: box (top, left, height, width) in pixels, and colour augmentation."""

    box: tuple[int, int, int, int]
    flip: bool
    order: list[int]  # of brightness, contrast, saturation, hue; empty without jitter
    factors: list[float]
    grayscale: bool
    sigma: float  # 0 without blur
    solarize: bool


def between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def draw_box(height: int, width: int, scale: list[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box of a random resized crop as torchvision does: ten tries, then the largest central box."""
    crop_size = fitting_crop(height, width, scale, (rng.random(2).tolist() for _ in range(CROP_TRIES)))
    if crop_size is None:
        return central_crop(height, width)
    h, w = crop_size
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def draw_crop(
    height: int,
    width: int,
    scale: list[float],
    blur: float,
    solarize: float,
    crops: CropArguments,
    rng: np.random.Generator,
) -> CropDraw:
    """Draw one crop of an image of `height` x `width` pixels; `blur` and `solarize` are probabilities."""
    box = draw_box(height, width, scale, rng)
    flips, jitters, greys, blurs, solarizes, *shares = rng.random(9).tolist()
    order, sigma = rng.permutation(4).tolist(), rng.uniform(*BLUR_SIGMA)
    centres = (1.0, 1.0, 1.0, 0.0)
    return CropDraw(
        box=box,
        flip=crops.horizontal_flips and flips < 0.5,
        order=order if jitters < crops.color_jitter_probability else [],
        factors=[between(c - s, c + s, u) for c, s, u in zip(centres, crops.color_jitter, shares, strict=True)],
        grayscale=greys < crops.grayscale_probability,
        sigma=sigma if blurs < blur else 0.0,
        solarize=solarizes < solarize,
    )


class MultiCrop:
    """Two global and L local crops of every image of a batch, augmented and normalised, and optional Gram crops."""

    def __init__(self, crops: CropArguments, gram_crop_size: int | None = None):
        self.crops, self.gram_crop_size = crops, gram_crop_size
        mean, std = torch.tensor(crops.image_mean), torch.tensor(crops.image_std)
        self.shift, self.scale = (mean / std).view(3, 1, 1), (1 / (WHITE * std)).view(3, 1, 1)

    def __call__(
        self, images: list[torch.Tensor], generators: list[np.random.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the crops of uint8 images [3, H, W].

        These are global crops [2, B, 3, S, S], local crops [L, B, 3, s, s] (None if L is 0), and Gram crops
        [2, B, 3, T, T] with the boxes of the global crops and unchanged colours (None without `gram_crop_size`).
        """
        crops = self.crops
        first, second, local = crops.blur_probability
        kinds = [(crops.global_crop_scale, first, 0.0), (crops.global_crop_scale, second, crops.solarize_probability)]
        kinds += [(crops.local_crop_scale, local, 0.0)] * crops.local_crops
        global_crops, local_crops, gram_crops = (
            torch.empty(count, len(images), 3, size, size)
            for count, size in (
                (2, crops.global_crop_size),
                (crops.local_crops, crops.local_crop_size),
                (2 if self.gram_crop_size else 0, self.gram_crop_size or 0),
            )
        )
        for place, (image, rng) in enumerate(zip(images, generators, strict=True)):
            # Resizing is twice as fast with interleaved channels.
            image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
            height, width = image.shape[1:]
            draws = [draw_crop(height, width, *kind, crops, rng) for kind in kinds]
            for out, draw in zip([*global_crops[:, place], *local_crops[:, place]], draws, strict=True):
                pixels = out.copy_(resized_crop(image, draw, out.shape[-1]))
                self.normalize(augment_colors(pixels, draw, crops.blur_kernel_size), out)
            for out, draw in zip(gram_crops[:, place], draws, strict=False):
                self.normalize(out.copy_(resized_crop(image, draw, out.shape[-1])), out)
        return global_crops, local_crops if crops.local_crops else None, gram_crops if self.gram_crop_size else None

    def normalize(self, pixels: torch.Tensor, out: torch.Tensor) -> None:
        torch.mul(pixels, self.scale, out=out).sub_(self.shift)


def resized_crop(image: torch.Tensor, draw: CropDraw, size: int) -> torch.Tensor:
    """Cut a box out of a uint8 image and resize it (bicubic, antialiased) to [3, size, size]."""
    top, left, height, width = draw.box
    box = image[None, :, top : top + height, left : left + width]
    resized = F.interpolate(box, size=(size, size), mode="bicubic", antialias=True)[0]
    return resized.flip(-1) if draw.flip else resized


def augment_colors(pixels: torch.Tensor, draw: CropDraw, kernel_size: int) -> torch.Tensor:
    """Augment the colours of a crop [3, S, S] in 0..255, in place; returns [1, S, S] if it becomes greyscale."""
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for index in draw.order:
        operations[index](pixels, draw.factors[index])
    if draw.grayscale:
        pixels = grey(pixels)
    if draw.sigma:
        pixels = gaussian_blur(pixels, draw.sigma, kernel_size)
    if draw.solarize:
        # This inverts whole numbers of at least 128.
        pixels = torch.minimum(pixels, WHITE - pixels)
    return pixels


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """Return the luminance [1, H, W] of RGB pixels [3, H, W]."""
    red, green, blue = pixels[:, None].unbind()
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


# The four jitter operations change pixels [3, H, W] in 0..255 in place. Only factors above 1 can exceed the range.


def adjust_brightness(pixels: torch.Tensor, factor: float) -> None:
    pixels.mul_(factor)
    if factor > 1:
        pixels.clamp_(max=WHITE)


def adjust_contrast(pixels: torch.Tensor, factor: float) -> None:
    mean = sum(weight * channel for weight, channel in zip(GREY, pixels.mean(dim=(1, 2)).tolist(), strict=True))
    pixels.mul_(factor).add_((1 - factor) * mean)
    if factor > 1:
        pixels.clamp_(0, WHITE)


def adjust_saturation(pixels: torch.Tensor, factor: float) -> None:
    luminance = grey(pixels)
    pixels.mul_(factor).add_(luminance, alpha=1 - factor)
    if factor > 1:
        pixels.clamp_(0, WHITE)


def adjust_hue(pixels: torch.Tensor, shift: float) -> None:
    """Shift the hue by a share of the colour circle; value and saturation of HSV are kept.

    A shift by a third of the circle moves each channel into the next. The remaining shift, by s sixths of the circle
    with s in 0..1, changes a channel x with p before it and n after it (the other way round for negative s) to
    x - n - (1 - 2 s) p + (1 - s) (max + min), clamped to min..max: as a function of the hue each channel is a
    trapezoid between min and max, and the formula gives its shifted slopes, without division or case distinctions.
    """
    thirds = round(3 * shift)
    sixths = 6 * shift - 2 * thirds
    low, high = pixels.amin(dim=0), pixels.amax(dim=0)
    common = (low + high).mul_(1 - abs(sixths)).sub_(pixels.sum(dim=0))
    turned = pixels.roll(thirds, dims=0) if thirds else pixels
    before = turned.roll(1 if sixths > 0 else -1, dims=0)
    shifted = common.add(turned, alpha=2).add_(before, alpha=2 * abs(sixths))
    torch.clamp(shifted, low, high, out=pixels)


def gaussian_blur(pixels: torch.Tensor, sigma: float, kernel_size: int) -> torch.Tensor:
    """Blur [C, H, W] with a kernel of `kernel_size` pixels and standard deviation `sigma`; borders are reflected."""
    height, width = pixels.shape[1:]
    # Beyond five standard deviations, weights are below 4e-6 of the central one.
    radius = min(kernel_size // 2, height - 1, width - 1, math.ceil(5 * sigma))
    kernel = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-radius, radius + 1)]
    total = sum(kernel)
    # Computed as a sum of shifted images, because convolutions of one channel are slow on a CPU.
    for dim, border in ((1, (0, 0, radius, radius)), (2, (radius, radius, 0, 0))):
        size, padded = pixels.shape[dim], F.pad(pixels, border, mode="reflect")
        pixels = padded.narrow(dim, 0, size) * (kernel[0] / total)
        for start, weight in enumerate(kernel[1:], 1):
            pixels.add_(padded.narrow(dim, start, size), alpha=weight / total)
    return pixels
