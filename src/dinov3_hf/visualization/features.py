"""Pictures of dense features: PCA maps as in figure 1 of the DINOv3 paper, similarity maps, and marks on images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from ..errors import Refused


@dataclass
class PcaBasis:
    """A mean [D], three principal directions [D,3], and the ends [3] of the range that the colours span."""

    mean: torch.Tensor
    directions: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def pca_basis(patch_tokens: torch.Tensor, percentiles: tuple[float, float] = (2.0, 98.0)) -> PcaBasis:
    """Fit the first three principal components of all patch tokens [...,D] together, in fp64.

    The sign of each direction is chosen so that its largest entry is positive, so that colours are the same in every
    run. Raises `Refused` for fewer than three channels.
    """
    tokens = patch_tokens.detach().double().flatten(0, -2).cpu()
    if tokens.shape[1] < 3:
        raise Refused(f"patch_tokens: got {tokens.shape[1]} channels, accepted: at least 3")
    mean = tokens.mean(0)
    centred = tokens - mean
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign()
    low, high = np.percentile((centred @ directions).numpy(), percentiles, axis=0)
    return PcaBasis(mean, directions, torch.from_numpy(low), torch.from_numpy(high))


def pca_map(patch_tokens: torch.Tensor, grid: tuple[int, int], basis: PcaBasis | None = None) -> np.ndarray:
    """Colour patch tokens [P,D] or [B,P,D] of `grid` (rows, columns) by their first three principal components.

    Without a `basis`, one is fitted on the whole batch, so that colours are comparable across its images. Returns
    uint8 RGB [h,w,3] or [B,h,w,3]. Raises `Refused` if P is not rows times columns.
    """
    _check_grid(patch_tokens, grid)
    basis = basis or pca_basis(patch_tokens)
    components = (patch_tokens.detach().double().cpu() - basis.mean) @ basis.directions
    # A direction without variation has no range: its channel is 0.
    colours = ((components - basis.low) / (basis.high - basis.low).clamp(min=1e-12)).clamp(0, 1)
    return (colours * 255).round().to(torch.uint8).unflatten(-2, grid).numpy()


def similarity_map(patch_tokens: torch.Tensor, query: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return the cosine similarity of patch tokens [P,D] or [B,P,D] with a query [D]; fp32 [h,w] or [B,h,w]."""
    _check_grid(patch_tokens, grid)
    return nn.functional.cosine_similarity(patch_tokens.float(), query.float(), dim=-1).unflatten(-1, grid)


def _check_grid(patch_tokens: torch.Tensor, grid: tuple[int, int]) -> None:
    if patch_tokens.ndim not in (2, 3) or patch_tokens.shape[-2] != grid[0] * grid[1]:
        raise Refused(
            f"grid: got {grid} for tokens of shape {tuple(patch_tokens.shape)}, accepted: rows * columns = P"
        )


def upscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of an image [h,w,3] `factor` times along both sides."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


# From low to high: dark blue, violet, orange, pale yellow. Each is brighter than the one before, also printed in grey.
HEAT = np.array([(10, 12, 70), (110, 30, 130), (225, 85, 80), (250, 170, 60), (252, 250, 190)], dtype=np.float64)
# Colours of points at the corners of an image: top left, top right, bottom left, bottom right.
CORNERS = np.array([(235, 70, 60), (250, 205, 40), (60, 110, 240), (40, 190, 120)], dtype=np.float64)


def heat_colours(levels: np.ndarray) -> np.ndarray:
    """Colour levels [h,w] (clipped to 0..1) from dark blue to pale yellow; returns fp64 RGB [h,w,3] in 0..255."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(levels, stops, channel) for channel in HEAT.T], axis=2)


def heat_map(
    image: Image.Image, values: torch.Tensor, span: tuple[float, float] | None = None, opacity: float = 0.65
) -> Image.Image:
    """Overlay values [h,w] on an RGB image as colours that span a range, by default minimum to maximum."""
    low, high = span or (values.min().item(), values.max().item())
    values = ((values.float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    size = (image.height, image.width)
    levels = nn.functional.interpolate(values[None, None], size, mode="bilinear")[0, 0].numpy()
    colours = heat_colours(levels)
    return Image.fromarray((opacity * colours + (1 - opacity) * np.asarray(image)).round().astype(np.uint8))


def place_colours(places: torch.Tensor) -> np.ndarray:
    """Return a colour for each point [K,2] by its position, mixed from those of the corners; uint8 [K,3]."""
    low, high = places.amin(0), places.amax(0)
    x, y = ((places - low) / (high - low).clamp(min=1e-12)).double().numpy().T[:, :, None]
    above, below = ((1 - x) * left + x * right for left, right in (CORNERS[:2], CORNERS[2:]))
    return ((1 - y) * above + y * below).round().astype(np.uint8)


def mark_places(
    image: Image.Image, places: torch.Tensor, colours: np.ndarray | None = None, radius: float | None = None
) -> Image.Image:
    """Draw dots in `colours` [K,3] at points [K,2] (x, y in pixels) of an RGB image, or rings without colours."""
    # Drawn at twice the size and then reduced, because Pillow does not antialias circles.
    unit, picture = 2, image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    radius = unit * (radius or max(4, min(image.size) / 40))
    for number, (x, y) in enumerate((unit * places).tolist()):

        def circle(size: float, x: float = x, y: float = y, **style: Any) -> None:
            draw.ellipse([x - size, y - size, x + size, y + size], **style)

        if colours is None:
            # White on black is visible on any image.
            circle(radius + unit, outline="black", width=3 * unit)
            circle(radius, outline="white", width=round(1.5 * unit))
            circle(unit, fill="white", outline="black")
        else:
            circle(radius, fill=tuple(colours[number].tolist()), outline="white", width=1)
    return picture.reduce(unit)


def stretch(cells: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Enlarge a map of patches [h,w,3] to (width, height) without interpolation, so that patches are visible."""
    return Image.fromarray(cells.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def outline_cell(picture: Image.Image, grid: tuple[int, int], cell: tuple[int, int]) -> Image.Image:
    """Return a copy of a picture with a frame around one cell (row, column) of a grid (rows, columns)."""
    (rows, columns), (row, column), (width, height) = grid, cell, picture.size
    left, right = column * width / columns, (column + 1) * width / columns
    top, bottom = row * height / rows, (row + 1) * height / rows
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    # White on black is visible on any image.
    for margin, colour in ((3, "black"), (2, "white"), (1, "white"), (0, "black")):
        draw.rectangle((left - margin, top - margin, right + margin - 1, bottom + margin - 1), outline=colour)
    return picture


def cut_out(image: Image.Image, mask: np.ndarray, colour: np.ndarray, side: int = 192) -> Image.Image:
    """Return a thumbnail of an RGB image, darkened where a mask [H,W] is false, with a frame in `colour`."""
    shown = np.where(mask[..., None], np.asarray(image), np.asarray(image) // 4)
    picture = Image.fromarray(shown)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    ImageDraw.Draw(picture).rectangle(
        (0, 0, picture.width - 1, picture.height - 1), outline=tuple(map(int, colour)), width=5
    )
    return picture
