"""A frozen network loaded from any checkpoint layout, applied to images of any size."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..checkpoints import load_aligned, load_model, tiny_checkpoint
from ..checkpoints.loading import read_config
from ..checkpoints.processors import processor_for
from ..data.views import standardize
from ..errors import Refused
from ..models.configuration_dinotxt import DinoTxtConfig
from ..models.modeling_dinov3 import Dinov3ForPreTraining, Dinov3Model
from ..models.pixel_values_dinov3 import Range


@dataclass(frozen=True)
class Encoder:
    """A frozen network with the mean and standard deviation of its preprocessing (of pixel values in 0..1).

    `value_range` is that of its image processor: what is black and white in images of more than 8 bits.
    """

    network: Dinov3Model
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: Range | None = None

    @classmethod
    def from_pretrained(cls, name: str | None = None) -> "Encoder":
        """Load a directory, hub id or weights file in any layout; `None` loads the model bundled with the package.

        Of a text-aligned model the vision tower is used. Raises `Refused` if there is no such model.
        """
        name = name or tiny_checkpoint()
        network = load_aligned(name)[0].vision_model if is_aligned(name) else load_model(name)
        network = network.dinov3 if isinstance(network, Dinov3ForPreTraining) else network
        processor = processor_for(name, network.config.image_size)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        statistics = tuple(processor.image_mean), tuple(processor.image_std)
        return cls(network.float().to(device).eval(), *statistics, getattr(processor, "value_range", None))

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.network.config.patch_size

    def grid(self, size: tuple[int, int], side: int) -> tuple[int, int]:
        """Return the rows and columns of patches of an image (width, height), its longer side resized to `side`."""
        width, height = size
        scale = side / max(width, height) / self.patch_size
        return max(1, round(height * scale)), max(1, round(width * scale))

    @torch.inference_mode()
    def tokens(self, image: Image.Image, side: int) -> torch.Tensor:
        """Return the patch tokens [h,w,D] of a whole RGB image after the final norm.

        The longer side is resized to `side` pixels, both sides to whole patches. Raises `Refused` for a side smaller
        than a patch.
        """
        if side < self.patch_size:
            raise Refused(f"side: got {side}, accepted: pixels, at least those of a patch ({self.patch_size})")
        grid = self.grid(image.size, side)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        size = [cells * self.patch_size for cells in grid]
        pixels = F.resize(pixels, size, interpolation=F.InterpolationMode.BICUBIC, antialias=True)
        images = standardize(pixels[None], self.mean, self.std).to(self.network.device)
        return self.network(images).patch_tokens[0].unflatten(0, grid)


def is_aligned(name: str) -> bool:
    """Return whether a directory or hub id holds a model with a text tower."""
    try:
        return read_config(name).get("model_type") == DinoTxtConfig.model_type
    except Refused:
        # Weights files, and names for which load_model raises a better error.
        return False
