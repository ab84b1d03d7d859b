"""Read and write DINOv3 weights in the layouts of transformers, Meta, timm and ONNX: one file for each layout."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from .bundled import tiny_checkpoint
from .names import LAYOUTS, WEIGHT_SUFFIXES


if TYPE_CHECKING:
    from .exporting import export
    from .loading import load_aligned, load_backbone, load_meta, load_model
    from .transformers import load_pretraining
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".exporting": ["export"],
            ".loading": ["load_aligned", "load_backbone", "load_meta", "load_model"],
            ".transformers": ["load_pretraining"],
        },
    )


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
