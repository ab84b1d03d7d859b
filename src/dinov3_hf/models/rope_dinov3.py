"""Axial rotary position embedding (DINOv3, section 3.2), always in fp32."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from .configuration_dinov3 import Dinov3Config


# What a configuration says: which sides normalise coordinates, head dim, theta, smallest and largest period.
Options = tuple[str, int, float, float | None, float | None]


@dataclass(frozen=True)
class RopeAugmentation:
    """Random change of the patch coordinates in training; `None` skips a step.

    Args:
        shift: adds U(-shift, shift) to each axis.
        jitter: multiplies each axis by exp(U(-ln jitter, ln jitter)).
        rescale: multiplies both axes by one exp(U(-ln rescale, ln rescale)).
    """

    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = None

    def __post_init__(self) -> None:
        if self.shift is not None and self.shift < 0:
            raise ValueError(f"shift={self.shift} must be at least 0")
        for name in ("jitter", "rescale"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        """Change coords [P,2] by one random draw for all patches."""
        if self.shift is not None:
            coords = coords + _uniform(coords, 2, self.shift)
        if self.jitter is not None:
            coords = coords * _uniform(coords, 2, math.log(self.jitter)).exp()
        if self.rescale is not None:
            coords = coords * _uniform(coords, 1, math.log(self.rescale)).exp()
        return coords


def _uniform(like: torch.Tensor, size: int, bound: float) -> torch.Tensor:
    return (torch.rand(size, device=like.device, dtype=like.dtype) * 2 - 1) * bound


class RotaryTable:
    """Rotation of every token: `cos` and `sin` [N,1,d] fp32, `sin` signed for `apply_rotary`.

    Not a tuple or a dataclass on purpose: mixed-precision wrappers cast the tensors they find in a layer's
    arguments, and these must stay in fp32.
    """

    __slots__ = ("cos", "sin")

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor):
        self.cos, self.sin = cos, sin


def patch_coordinates(height: int, width: int, normalize: str, device: torch.device | None = None) -> torch.Tensor:
    """Return the patch centres (row, column) in [-1, 1], [P,2] fp32, row by row."""
    side = {"separate": (height, width), "min": (min(height, width),) * 2, "max": (max(height, width),) * 2}[normalize]
    rows = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / side[0]
    columns = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / side[1]
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1) * 2 - 1


def rope_periods(
    head_dim: int,
    theta: float,
    min_period: float | None = None,
    max_period: float | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return periods [d/4] fp32: theta^(4k/d), or log-spaced from `min_period` to `max_period`."""
    if min_period is not None and max_period is not None:
        exponent = torch.linspace(0, 1, head_dim // 4, device=device, dtype=torch.float32)
        return max_period * (max_period / min_period) ** (exponent - 1)
    return theta ** (torch.arange(head_dim // 4, device=device, dtype=torch.float32) * 4 / head_dim)


def rope_angles(coords: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
    """Return angles [P,d] for coordinates [P,2]: d/4 for the row, d/4 for the column, tiled twice."""
    return (2 * math.pi * coords[:, :, None] / periods).flatten(1).tile(2)


def rotary_table(angles: torch.Tensor, num_prefix_tokens: int) -> RotaryTable:
    """Return the table for `num_prefix_tokens` tokens without a position, then the patches of `angles` [P,d]."""
    # Prefix tokens turn by an angle of zero: rotating them too costs less than splitting and joining q and k.
    angles = torch.cat([angles.new_zeros(num_prefix_tokens, angles.shape[1]), angles])[:, None]
    first, second = angles.sin().chunk(2, dim=-1)
    return RotaryTable(angles.cos(), torch.cat([-first, second], dim=-1))


def apply_rotary(states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Rotate pairs (i, i + d/2) of states [B,N,heads,d] in fp32, and return the result in the dtype of `states`."""
    rotated = states.to(torch.promote_types(states.dtype, torch.float32))
    half = rotated.shape[-1] // 2
    return torch.addcmul(rotated * table.cos, rotated.roll(half, dims=-1), table.sin).to(states.dtype)


@lru_cache(maxsize=16)
def _cached_table(
    height: int, width: int, device: torch.device, num_prefix_tokens: int, *options: *Options
) -> RotaryTable:
    # A table first built in inference mode may later be used in training.
    with torch.inference_mode(False), torch.no_grad():
        return _build_table(height, width, device, num_prefix_tokens, *options)


def _build_table(
    height: int,
    width: int,
    device: torch.device,
    num_prefix_tokens: int,
    normalize: str,
    head_dim: int,
    theta: float,
    min_period: float | None,
    max_period: float | None,
    augmentation: RopeAugmentation | None = None,
) -> RotaryTable:
    with torch.autocast(device.type, enabled=False):
        coords = patch_coordinates(height, width, normalize, device)
        if augmentation is not None:
            coords = augmentation(coords)
        periods = rope_periods(head_dim, theta, min_period, max_period, device)
        return rotary_table(rope_angles(coords, periods), num_prefix_tokens)


class Dinov3RotaryEmbedding(nn.Module):
    """Rotary tables for grids of patches, computed from the configuration: a buffer would be rounded by casts."""

    def __init__(self, config: Dinov3Config):
        super().__init__()
        self.num_prefix_tokens = 1 + config.num_register_tokens
        self.options: Options = (
            config.rope_normalize_coords,
            config.hidden_size // config.num_attention_heads,
            float(config.rope_theta),
            config.rope_min_period,
            config.rope_max_period,
        )

    def forward(
        self, height: int, width: int, device: torch.device, augmentation: RopeAugmentation | None = None
    ) -> RotaryTable:
        """Return the table for a grid of `height` x `width` patches; each call with an augmentation is a new draw."""
        arguments = (height, width, device, self.num_prefix_tokens, *self.options)
        if augmentation is not None:
            return _build_table(*arguments, augmentation)
        # Compilers and exporters trace with tensors that must not outlive the trace.
        if torch.compiler.is_compiling() or device.type == "meta":
            return _build_table(*arguments)
        return _cached_table(*arguments)


__all__ = ["Dinov3RotaryEmbedding", "RopeAugmentation", "RotaryTable"]
