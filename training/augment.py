"""Multi-crop and its augmentations (DINO, section 3.1; DINOv3, appendix C).

Every random number comes from the generator of its image, so a crop is a function of (seed, step, place in the global
batch). Numbers are drawn image by image, pixels are changed for all crops of a batch at once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .arguments import CropArguments


SOLARIZE_THRESHOLD = 128 / 255
BLUR_SIGMA = (0.1, 2.0)
ASPECT = (3 / 4, 4 / 3)
GREY = (0.2989, 0.587, 0.114)


@dataclass
class CropDraw:
    """The random numbers of one crop: box (top, left, height, width) in pixels, and what happens to its colours."""

    box: tuple[int, int, int, int]
    flip: bool
    order: np.ndarray  # of brightness, contrast, saturation, hue; empty without jitter
    factors: np.ndarray
    grayscale: bool
    sigma: float  # 0 without blur
    solarize: bool


def draw_box(height: int, width: int, scale: list[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box of a random resized crop as torchvision does: ten tries, then the largest central one."""
    log_ratio = (math.log(ASPECT[0]), math.log(ASPECT[1]))
    for _ in range(10):
        area, ratio = height * width * rng.uniform(*scale), math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < ASPECT[0]:
        h = round(width / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(height * ASPECT[1])
    return (height - h) // 2, (width - w) // 2, h, w


def draw_crop(
    height: int, width: int, scale: list[float], blur: float, solarize: float, crops: CropArguments, rng
) -> CropDraw:
    """Draw one crop of an image of `height` x `width` pixels."""
    box = draw_box(height, width, scale, rng)
    chances = rng.random(5)
    brightness, contrast, saturation, hue = crops.color_jitter
    low = np.array([1 - brightness, 1 - contrast, 1 - saturation, -hue])
    high = np.array([1 + brightness, 1 + contrast, 1 + saturation, hue])
    factors, order, sigma = rng.uniform(low, high), rng.permutation(4), rng.uniform(*BLUR_SIGMA)
    return CropDraw(
        box=box,
        flip=bool(crops.horizontal_flips and chances[0] < 0.5),
        order=order if chances[1] < crops.color_jitter_probability else order[:0],
        factors=factors,
        grayscale=bool(chances[2] < crops.grayscale_probability),
        sigma=float(sigma) if chances[3] < blur else 0.0,
        solarize=bool(chances[4] < solarize),
    )


class MultiCrop:
    """Two global and L local crops of every image of a batch, augmented and normalised; Gram crops when asked."""

    def __init__(self, crops: CropArguments, gram_crop_size: int | None = None):
        self.crops, self.gram_crop_size = crops, gram_crop_size
        mean, std = torch.tensor(crops.image_mean), torch.tensor(crops.image_std)
        self.shift, self.scale = (mean / std).view(3, 1, 1), (1 / std).view(3, 1, 1)

    def __call__(
        self, images: list[torch.Tensor], generators: list[np.random.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Cut the crops of uint8 images [3, H, W].

        Returns global crops [2, B, 3, S, S], local crops [L, B, 3, s, s] (None if L is 0), and the undistorted Gram
        crops [2, B, 3, T, T] of the same boxes as the global ones (None without `gram_crop_size`).
        """
        crops = self.crops
        first, second, local = crops.blur_probability
        kinds = [(crops.global_crop_scale, first, 0.0), (crops.global_crop_scale, second, crops.solarize_probability)]
        kinds += [(crops.local_crop_scale, local, 0.0)] * crops.local_crops
        draws = [
            [draw_crop(*image.shape[1:], *kind, crops, rng) for kind in kinds]
            for image, rng in zip(images, generators, strict=True)
        ]
        groups = [(0, 2, crops.global_crop_size)]
        groups += [(2, len(kinds), crops.local_crop_size)] if crops.local_crops else []
        results = []
        for start, stop, size in groups:
            pairs = [
                (image, draw[kind]) for kind in range(start, stop) for image, draw in zip(images, draws, strict=True)
            ]
            pixels = torch.cat([resized_crop(image, draw, size) for image, draw in pairs]).float().div_(255)
            pixels = augment_colors(pixels, [draw for _, draw in pairs], crops.blur_kernel_size)
            pixels = pixels.mul_(self.scale).sub_(self.shift)
            results.append(pixels.unflatten(0, (stop - start, len(images))))
        gram = None
        if self.gram_crop_size:
            pairs = [(image, draw[kind]) for kind in range(2) for image, draw in zip(images, draws, strict=True)]
            gram = torch.cat([resized_crop(image, draw, self.gram_crop_size) for image, draw in pairs]).float()
            gram = gram.div_(255).mul_(self.scale).sub_(self.shift).unflatten(0, (2, len(images)))
        return results[0], results[1] if crops.local_crops else None, gram


def resized_crop(image: torch.Tensor, draw: CropDraw, size: int) -> torch.Tensor:
    """Cut a box out of a uint8 image and resize it (bicubic, antialiased) to [1, 3, size, size]."""
    top, left, height, width = draw.box
    box = image[None, :, top : top + height, left : left + width]
    resized = F.interpolate(box, size=(size, size), mode="bicubic", antialias=True)
    return resized.flip(-1) if draw.flip else resized


def augment_colors(pixels: torch.Tensor, draws: list[CropDraw], kernel_size: int) -> torch.Tensor:
    """Jitter, grey, blur and solarize crops [N, 3, S, S] in 0..1 by their draws; returns the same shape."""
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for slot in range(4):
        for index, operation in enumerate(operations):
            rows = [row for row, draw in enumerate(draws) if len(draw.order) and draw.order[slot] == index]
            if rows:
                factors = torch.tensor([draws[row].factors[index] for row in rows], dtype=torch.float32)
                pixels[rows] = operation(pixels[rows], factors.view(-1, 1, 1, 1))
    rows = [row for row, draw in enumerate(draws) if draw.grayscale]
    if rows:
        pixels[rows] = grey(pixels[rows]).expand(-1, 3, -1, -1)
    rows = [row for row, draw in enumerate(draws) if draw.sigma > 0]
    if rows:
        pixels[rows] = gaussian_blur(pixels[rows], torch.tensor([draws[row].sigma for row in rows]), kernel_size)
    rows = [row for row, draw in enumerate(draws) if draw.solarize]
    if rows:
        bright = pixels[rows]
        pixels[rows] = torch.where(bright >= SOLARIZE_THRESHOLD, 1 - bright, bright)
    return pixels


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """Return the luminance [N, 1, H, W] of RGB pixels [N, 3, H, W]."""
    return (pixels * torch.tensor(GREY).view(3, 1, 1)).sum(dim=1, keepdim=True)


def adjust_brightness(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (pixels * factors).clamp_(0, 1)


def adjust_contrast(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.lerp(grey(pixels).mean(dim=(2, 3), keepdim=True), pixels, factors).clamp_(0, 1)


def adjust_saturation(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.lerp(grey(pixels), pixels, factors).clamp_(0, 1)


def adjust_hue(pixels: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Shift the hue of RGB pixels by a share of the colour circle, value and saturation kept."""
    value = pixels.amax(dim=1, keepdim=True)
    chroma = value - pixels.amin(dim=1, keepdim=True)
    safe = torch.where(chroma > 0, chroma, 1.0)
    red, green, blue = pixels.split(1, dim=1)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sector + 6 * shifts
    # f(n) = v - c max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6: the HSV-to-RGB formula without branches.
    offsets = torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    k = (offsets + hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(pixels: torch.Tensor, sigmas: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Blur each image of [N, 3, H, W] with its own sigma in pixels; borders are reflected."""
    radius = kernel_size // 2
    radius = min(radius, pixels.shape[-1] - 1, pixels.shape[-2] - 1)
    places = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (places / sigmas[:, None]) ** 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    count, channels, height, width = pixels.shape
    flat = F.pad(pixels, (radius,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * radius, -1)
    flat = F.conv2d(flat, kernels[:, None, :, None], groups=count * channels)
    return F.conv2d(flat, kernels[:, None, None, :], groups=count * channels).view_as(pixels)
