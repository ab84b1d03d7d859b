"""What one does with a trained network, one task a file; importing this registers those that transformers has no task for."""

from .zero_shot_segmentation import ZeroShotImageSegmentationPipeline


__all__ = ["ZeroShotImageSegmentationPipeline"]
