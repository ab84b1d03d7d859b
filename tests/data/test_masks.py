"""Masks of classes are read as they are."""

import io

import numpy as np
import pytest
from PIL import Image as PilImage

from dinov3_hf.data.masks import read_mask


def encode(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_masks_keep_indices_and_refuse_colours():
    indices = np.array([[0, 3], [255, 7]], dtype=np.uint8)
    assert read_mask(encode(indices)).tolist() == indices.tolist()
    palette = PilImage.fromarray(indices).convert("P")
    palette.putdata([0, 3, 200, 7])
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG")
    assert read_mask({"bytes": buffer.getvalue()}).tolist() == [[0, 3], [200, 7]]
    with pytest.raises(ValueError, match="mask: got an image of mode RGB, accepted: one channel"):
        read_mask(encode(np.zeros((2, 2, 3), dtype=np.uint8)))
