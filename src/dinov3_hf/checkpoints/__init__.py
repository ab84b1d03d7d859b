"""Weights of DINOv3 in everyone's layouts, in and out: one file a layout."""

from .embedded import tiny_checkpoint
from .exporting import LAYOUTS, export
from .loading import WEIGHT_SUFFIXES, load_aligned, load_backbone, load_meta, load_model
from .transformers import load_pretraining


__all__ = [
    "LAYOUTS",
    "WEIGHT_SUFFIXES",
    "export",
    "load_aligned",
    "load_backbone",
    "load_meta",
    "load_model",
    "load_pretraining",
    "tiny_checkpoint",
]
