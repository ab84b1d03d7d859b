"""Depth maps are read with what is valid in them."""

import io

import numpy as np
from PIL import Image as PilImage

from dinov3_hf.data.depths import read_depth


def encode(pixels: np.ndarray, kind="PNG") -> dict:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format=kind)
    return {"bytes": buffer.getvalue(), "path": None}


def test_reading_keeps_what_is_valid():
    values = np.array([[np.nan, np.inf, -1, 0], [0.5, 2, 10, 10.5]], np.float32)
    found = read_depth(encode(values, "TIFF"), 1.0, 0.6, 10.0)
    assert found.dtype == np.float32 and found.tolist() == [[0, 0, 0, 0], [0, 2, 10, 0]]
    limits = np.array([[0, 1, 2], [9_999, 10_000, 10_001]], np.uint16)
    found = read_depth(encode(limits), 0.001, 0.001, 10.0)
    assert found.dtype == np.uint16 and found.tolist() == [[0, 1, 2], [9_999, 10_000, 0]]
