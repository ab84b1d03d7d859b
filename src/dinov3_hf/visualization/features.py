"""Pictures of dense features: PCA maps as in DINOv3's figure 1, similarity maps, and marks on images."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from ..errors import Refused


@dataclass
class PcaBasis:
    """Three principal directions [D,3] around a mean [D], and the range [3] of each that the colours span."""

    mean: torch.Tensor
    directions: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def pca_basis(patch_tokens: torch.Tensor, percentiles: tuple[float, float] = (2.0, 98.0)) -> PcaBasis:
    """Fit the first three principal components of patch tokens [...,D] (all together), computed in fp64.

    The largest entry of each direction is positive, so that a colour means the same from run to run. Raises `Refused`
    for fewer than three channels.
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

    Without a `basis` one is fitted on the whole batch, so that colours agree across its images. Returns uint8 RGB
    [h,w,3] or [B,h,w,3]. Raises `Refused` if P is not rows times columns.
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
        raise Refused(
            f"grid: got {grid} for tokens of shape {tuple(patch_tokens.shape)}, accepted: rows * columns = P"
        )


def upscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of an image [h,w,3] `factor` times along both sides."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


# From low to high: dark blue, violet, orange, pale yellow. Also without colours each is brighter than the one before.
HEAT = np.array([(10, 12, 70), (110, 30, 130), (225, 85, 80), (250, 170, 60), (252, 250, 190)], dtype=np.float64)
# Of places in an image's corners: above left, above right, below left, below right.
CORNERS = np.array([(235, 70, 60), (250, 205, 40), (60, 110, 240), (40, 190, 120)], dtype=np.float64)


def heat_colours(levels: np.ndarray) -> np.ndarray:
    """Colour levels [h,w] between 0 and 1, clipped beyond, from dark blue to pale yellow; fp64 RGB [h,w,3] of 0..255."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(levels, stops, channel) for channel in HEAT.T], axis=2)


def heat_map(
    image: Image.Image, values: torch.Tensor, span: tuple[float, float] | None = None, opacity: float = 0.65
) -> Image.Image:
    """Lay values [h,w] over an RGB image, as colours between the ends of `span`, by default the least and largest value."""
    low, high = span or (values.min().item(), values.max().item())
    values = ((values.float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    size = (image.height, image.width)
    levels = nn.functional.interpolate(values[None, None], size, mode="bilinear")[0, 0].numpy()
    colours = heat_colours(levels)
    return Image.fromarray((opacity * colours + (1 - opacity) * np.asarray(image)).round().astype(np.uint8))


def place_colours(places: torch.Tensor) -> np.ndarray:
    """Colour places [K,2] by where they lie between the outermost ones, the corners' colours mixed; uint8 [K,3]."""
    low, high = places.amin(0), places.amax(0)
    x, y = ((places - low) / (high - low).clamp(min=1e-12)).double().numpy().T[:, :, None]
    above, below = ((1 - x) * left + x * right for left, right in (CORNERS[:2], CORNERS[2:]))
    return ((1 - y) * above + y * below).round().astype(np.uint8)


def mark_places(
    image: Image.Image, places: torch.Tensor, colours: np.ndarray | None = None, radius: float | None = None
) -> Image.Image:
    """Draw dots at places [K,2], (x, y) in pixels, over an RGB image: of their `colours` [K,3], else a ring around each."""
    # Drawn at twice the size, because Pillow's circles have jagged edges.
    unit, picture = 2, image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    radius = unit * (radius or max(4, min(image.size) / 40))
    for number, (x, y) in enumerate((unit * places).tolist()):

        def circle(size, x=x, y=y, **style):
            draw.ellipse([x - size, y - size, x + size, y + size], **style)

        if colours is None:
            # White within black shows on any ground.
            circle(radius + unit, outline="black", width=3 * unit)
            circle(radius, outline="white", width=round(1.5 * unit))
            circle(unit, fill="white", outline="black")
        else:
            circle(radius, fill=tuple(colours[number].tolist()), outline="white", width=1)
    return picture.reduce(unit)


def stretch(cells: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Enlarge a map of patches [h,w,3] to an image's (width, height), without smoothing: one sees where patches end."""
    return Image.fromarray(cells.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def outline_cell(picture: Image.Image, grid: tuple[int, int], cell: tuple[int, int]) -> Image.Image:
    """Return a copy with a frame around one cell (row, column) of a grid (rows, columns) laid over it."""
    (rows, columns), (row, column), (width, height) = grid, cell, picture.size
    left, right = column * width / columns, (column + 1) * width / columns
    top, bottom = row * height / rows, (row + 1) * height / rows
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    # White within black shows on any ground.
    for margin, colour in ((3, "black"), (2, "white"), (1, "white"), (0, "black")):
        draw.rectangle((left - margin, top - margin, right + margin - 1, bottom + margin - 1), outline=colour)
    return picture


def cut_out(image: Image.Image, mask: np.ndarray, colour: np.ndarray, side: int = 192) -> Image.Image:
    """Show an RGB image where a mask [H,W] is true and darkened elsewhere, small, in a frame of its colour."""
    shown = np.where(mask[..., None], np.asarray(image), np.asarray(image) // 4)
    picture = Image.fromarray(shown)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    ImageDraw.Draw(picture).rectangle(
        (0, 0, picture.width - 1, picture.height - 1), outline=tuple(map(int, colour)), width=5
    )
    return picture
