"""Dense features of images of any size: a map of patch tokens after the final norm, from sliding windows if asked."""

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3Backbone, Dinov3Model
from ..models.modeling_dinov3_convnext import Dinov3ConvNextModel
from .windows import Windowed


@torch.no_grad()
def dense_features(
    model: nn.Module,
    images: torch.Tensor | Sequence[torch.Tensor],
    window: int | None = None,
    stride: int | None = None,
    upsample: str | tuple[int, int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """Return feature maps of images: [B,D,h,w] for normalised images [B,C,H,W].

    For a list of images [C,H,W], whose sizes may differ, returns a list of maps [D,h,w]. A map covers the whole image:
    sides that are not multiples of the patch size are resized to the nearest one, so that cell (i, j) is the rectangle
    of the image from (i H/h, j W/w) to ((i+1) H/h, (j+1) W/w).

    Args:
        window: side in pixels of sliding windows, which keep the memory constant for images of any size; tokens are
            averaged where windows overlap. By default the whole image goes through the network at once.
        stride: stride of the windows in pixels, by default two thirds of `window`.
        upsample: "image" upsamples the map bilinearly to the size of the image, (height, width) to that size.

    Raises:
        Refused: for images, windows or sizes that do not fit.
    """
    network = getattr(model, "dinov3", model)
    if not isinstance(network, (Dinov3Model, Dinov3ConvNextModel)) or isinstance(network, Dinov3Backbone):
        raise Refused(
            f"model: got a {type(model).__name__}, "
            "accepted: a Dinov3Model, a Dinov3ConvNextModel or a model around one"
        )
    patch = network.config.patch_size
    if isinstance(upsample, str):
        is_accepted = upsample == "image"
    else:
        is_accepted = upsample is None or (len(upsample) == 2 and min(upsample) >= 1)
    if not is_accepted:
        raise Refused(f"upsample: got {upsample!r}, accepted: None, 'image' or (height, width) in pixels")
    if window is not None:
        network = Windowed(network, window, stride)
    elif stride is not None:
        raise Refused(f"stride: got {stride}, accepted: only with a window")
    if isinstance(images, torch.Tensor):
        return _features(network, _check(images, 4), patch, upsample)
    images = [_check(image, 3) for image in images]
    return [_features(network, image[None], patch, upsample)[0] for image in images]


def _features(
    network: nn.Module, images: torch.Tensor, patch: int, upsample: str | tuple[int, int] | None
) -> torch.Tensor:
    size = images.shape[-2:]
    grid = [max(1, round(side / patch)) for side in size]
    fitted = [patch * cells for cells in grid]
    images = images.to(network.device)
    if fitted != list(size):
        images = nn.functional.interpolate(images.float(), fitted, mode="bilinear", antialias=True)
    features = network(images).patch_tokens.transpose(1, 2).unflatten(2, grid)
    if upsample is None:
        return features.contiguous()
    return nn.functional.interpolate(features, size if upsample == "image" else upsample, mode="bilinear")


def _check(images: torch.Tensor, dimensions: int) -> torch.Tensor:
    if not isinstance(images, torch.Tensor) or images.ndim != dimensions or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise Refused(
            f"images: got {got}, accepted: normalised floating-point tensors, [B,C,H,W] or a list of [C,H,W]"
        )
    return images


__all__ = ["dense_features"]
