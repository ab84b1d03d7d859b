"""Images larger than the network's window: seen in overlapping windows, so that memory does not grow with the image."""

import torch
from torch import nn

from ..models.modeling_dinov3 import Dinov3ModelOutput


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Places along a side at which windows start: every `stride`, and the last flush with the end."""
    return [*range(0, max(length - window, 0), stride), max(length - window, 0)]


class Windowed(nn.Module):
    """A network that sees an image [B,3,H,W] in windows of at most `window` pixels a side, two thirds of one apart.

    Patch tokens are averaged where windows overlap (for a linear head this is averaging its logits: DINOv3, section
    6.1.2, windows of 512 with stride 341); the class token is the mean over windows. Rounded to patches.
    """

    def __init__(self, model: nn.Module, window: int):
        super().__init__()
        patch = model.config.patch_size
        if window < patch or window % patch:
            raise ValueError(f"window: got {window}, accepted: a multiple of the model's patch size ({patch})")
        self.model, self.config, self.window = model, model.config, window
        self.stride = max(patch, window * 2 // 3 // patch * patch)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(self, pixel_values: torch.Tensor) -> Dinov3ModelOutput:
        patch, (height, width) = self.config.patch_size, pixel_values.shape[-2:]
        rows, columns = height // patch, width // patch
        # The sum is fp32, whatever the network computes in.
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
