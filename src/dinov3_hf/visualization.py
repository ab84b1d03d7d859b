"""Pictures of dense features: PCA maps as in DINOv3's figure 1, similarity maps, and labelled grids of images."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn


@dataclass
class PcaBasis:
    """Three principal directions [D,3] around a mean [D], and the range [3] of each that the colours span."""

    mean: torch.Tensor
    directions: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def pca_basis(patch_tokens: torch.Tensor, percentiles: tuple[float, float] = (2.0, 98.0)) -> PcaBasis:
    """Fit the first three principal components of patch tokens [...,D] (all together), computed in fp64.

    The largest entry of each direction is positive, so that a colour means the same from run to run. Raises ValueError
    for fewer than three channels.
    """
    tokens = patch_tokens.detach().double().flatten(0, -2).cpu()
    if tokens.shape[1] < 3:
        raise ValueError(f"patch_tokens: got {tokens.shape[1]} channels, accepted: at least 3")
    mean = tokens.mean(0)
    centred = tokens - mean
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign()
    low, high = np.percentile((centred @ directions).numpy(), percentiles, axis=0)
    return PcaBasis(mean, directions, torch.from_numpy(low), torch.from_numpy(high))


def pca_map(patch_tokens: torch.Tensor, grid: tuple[int, int], basis: PcaBasis | None = None) -> np.ndarray:
    """Colour patch tokens [P,D] or [B,P,D] of `grid` (rows, columns) by their first three principal components.

    Without a `basis` one is fitted on the whole batch, so that colours agree across its images. Returns uint8 RGB
    [h,w,3] or [B,h,w,3]. Raises ValueError if P is not rows times columns.
    """
    _check_grid(patch_tokens, grid)
    basis = basis or pca_basis(patch_tokens)
    components = (patch_tokens.detach().double().cpu() - basis.mean) @ basis.directions
    # A direction without variation has no range: it stays dark.
    colours = ((components - basis.low) / (basis.high - basis.low).clamp(min=1e-12)).clamp(0, 1)
    return (colours * 255).round().to(torch.uint8).unflatten(-2, grid).numpy()


def similarity_map(patch_tokens: torch.Tensor, query: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Cosine similarity (-1..1) of patch tokens [P,D] or [B,P,D] to a query [D]; returns fp32 [h,w] or [B,h,w]."""
    _check_grid(patch_tokens, grid)
    return nn.functional.cosine_similarity(patch_tokens.float(), query.float(), dim=-1).unflatten(-1, grid)


def _check_grid(patch_tokens: torch.Tensor, grid: tuple[int, int]) -> None:
    if patch_tokens.ndim not in (2, 3) or patch_tokens.shape[-2] != grid[0] * grid[1]:
        raise ValueError(
            f"grid: got {grid} for tokens of shape {tuple(patch_tokens.shape)}, accepted: rows * columns = P"
        )


def upscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of an image [h,w,3] `factor` times along both sides."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def image_grid(rows: dict[str, list[np.ndarray]], cell: int = 96, margin: int = 6) -> Image.Image:
    """Compose labelled rows of uint8 images [h,w,3] into one picture, each image `cell` pixels a side.

    Smaller images are enlarged by whole pixels' repetition, as maps of patches should be.
    """
    font = ImageFont.load_default(14)
    label_width = max(int(font.getlength(label)) for label in rows) + 2 * margin
    columns = max(map(len, rows.values()))
    size = (label_width + columns * (cell + margin), margin + len(rows) * (cell + margin))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for index, (label, images) in enumerate(rows.items()):
        top = margin + index * (cell + margin)
        draw.text((margin, top + cell // 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            tile = Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST)
            picture.paste(tile, (label_width + column * (cell + margin), top))
    return picture
