"""Boxes of random crops: those of torchvision for the same draws."""

import math

import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop

from dinov3_hf.data.crops import ASPECT, central_crop, fitting_crop


@pytest.mark.parametrize("height, width", [(60, 90), (37, 200), (300, 20)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.32, 1.0), (0.05, 0.32)])
def test_sizes_are_torchvisions(height, width, scale):
    crop = RandomResizedCrop(10, scale, ASPECT)
    for seed in range(40):
        torch.manual_seed(seed)
        expected = crop.make_params([torch.zeros(1, height, width)])
        torch.manual_seed(seed)
        tries = []
        for _ in range(10):
            # In torchvision's order: the area, then the logarithm of the aspect.
            area = torch.empty(1).uniform_(*scale).item()
            aspect = torch.empty(1).uniform_(*(math.log(side) for side in ASPECT)).item()
            low, high = (math.log(side) for side in ASPECT)
            tries.append(((area - scale[0]) / (scale[1] - scale[0]), (aspect - low) / (high - low)))
        found = fitting_crop(height, width, scale, tries)
        if found is None:
            assert central_crop(height, width) == tuple(expected[name] for name in ("top", "left", "height", "width"))
        else:
            assert found == (expected["height"], expected["width"])
