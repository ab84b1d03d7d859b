"""Ways to use a trained model, one task per file."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names


if TYPE_CHECKING:
    from .zero_shot_segmentation import ZeroShotImageSegmentationPipeline
else:
    __getattr__, __dir__ = lazy_names(__name__, {".zero_shot_segmentation": ["ZeroShotImageSegmentationPipeline"]})


__all__ = ["ZeroShotImageSegmentationPipeline"]
