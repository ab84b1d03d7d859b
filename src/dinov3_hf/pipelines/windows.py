"""Sliding windows over large images, which keep the memory of the network constant."""

import torch
from torch import nn

from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3ModelOutput


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side: every `stride` pixels, and so that the last one ends at the end."""
    return [*range(0, max(length - window, 0), stride), max(length - window, 0)]


def check_window(window: int, patch_size: int) -> None:
    """Raise `Refused` for a window whose side in pixels is not a multiple of the patch size."""
    if window < patch_size or window % patch_size:
        raise Refused(f"window: got {window}, accepted: a multiple of the model's patch size ({patch_size})")


def check_stride(stride: int, window: int, patch_size: int) -> None:
    """Raise `Refused` for a stride that is larger than the window, or not a multiple of the patch size."""
    if not patch_size <= stride <= window or stride % patch_size:
        raise Refused(
            f"stride: got {stride}, accepted: a multiple of the patch size ({patch_size}) up to the window ({window})"
        )


class Windowed(nn.Module):
    """Applies a network to images [B,3,H,W] in windows of `window` pixels, `stride` pixels apart.

    Patch tokens are averaged where windows overlap. (For a linear head this equals averaging its logits, as in DINOv3,
    section 6.1.2, with windows of 512 and stride 341.) The class token is the mean over windows. The default stride is
    two thirds of the window, rounded down to whole patches.
    """

    def __init__(self, model: nn.Module, window: int, stride: int | None = None):
        super().__init__()
        patch = model.config.patch_size
        check_window(window, patch)
        self.model, self.config, self.window = model, model.config, window
        self.stride = max(patch, window * 2 // 3 // patch * patch) if stride is None else stride
        check_stride(self.stride, window, patch)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(self, pixel_values: torch.Tensor) -> Dinov3ModelOutput:
        patch, (height, width) = self.config.patch_size, pixel_values.shape[-2:]
        rows, columns = height // patch, width // patch
        # Summed in fp32, whatever the precision of the network.
        total = torch.zeros(len(pixel_values), rows, columns, self.config.hidden_size, device=self.device)
        counts = torch.zeros(rows, columns, 1, device=self.device)
        cls_tokens = []
        for top in window_starts(rows * patch, self.window, self.stride):
            for left in window_starts(columns * patch, self.window, self.stride):
                part = pixel_values[..., top : top + self.window, left : left + self.window]
                output = self.model(part)
                h, w = part.shape[-2] // patch, part.shape[-1] // patch
                place = (slice(top // patch, top // patch + h), slice(left // patch, left // patch + w))
                total[:, *place] += output.patch_tokens.unflatten(1, (h, w))
                counts[place] += 1
                cls_tokens.append(output.pooler_output.float())
        return Dinov3ModelOutput(
            pooler_output=torch.stack(cls_tokens).mean(0), patch_tokens=(total / counts).flatten(1, 2)
        )
