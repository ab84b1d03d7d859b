"""Feature functions of a frozen network and of its two baselines."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from ..pipelines.windows import Windowed


# Side in pixels to which whole images are averaged down for the raw-pixel baseline, which bounds its memory.
RAW_PIXELS_SIDE = 32


def randomly_initialised(model: nn.Module, seed: int) -> nn.Module:
    """Build a network of the same configuration with random weights drawn by `seed`."""
    if isinstance(model, Windowed):
        return Windowed(randomly_initialised(model.model, seed), model.window)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = type(model)(copy.deepcopy(model.config))
    parameter = next(model.parameters())
    return network.to(parameter.device, parameter.dtype).eval()


def cls_features(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from images [B,3,S,S] to the class tokens [B,D] of `model`, fp32."""
    return _frozen(model, lambda output: output.pooler_output)


def patch_features(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from images [B,3,S,S] to the patch tokens [B,P,D] of `model`, fp32."""
    return _frozen(model, lambda output: output.patch_tokens)


def cls_and_mean_features(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from images to the class token concatenated with the mean patch token [B,2D], fp32."""
    return _frozen(model, lambda output: torch.cat([output.pooler_output, output.patch_tokens.mean(dim=1)], dim=1))


def _frozen(model: nn.Module, pick: Callable) -> Callable[[torch.Tensor], torch.Tensor]:
    parameter = next(model.parameters())

    @torch.inference_mode()
    def features(pixel_values: torch.Tensor) -> torch.Tensor:
        model.eval()
        return pick(model(pixel_values.to(parameter.device, parameter.dtype))).float()

    return features


def raw_image_features(pixel_values: torch.Tensor, side: int = RAW_PIXELS_SIDE) -> torch.Tensor:
    """Flatten normalised images [B,3,H,W], averaged down to `side` pixels a side, to [B,3*side*side]."""
    return nn.functional.adaptive_avg_pool2d(pixel_values, side).flatten(1)


def raw_patch_features(patch_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from normalised images [B,3,S,S] to their patches' own pixels [B,P,3*p*p]."""
    return lambda pixel_values: nn.functional.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)
