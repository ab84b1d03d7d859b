"""Image processor of DINOv3."""

from typing import Any

import torch
from torchvision.transforms import InterpolationMode
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.utils import logging


logger = logging.get_logger(__name__)


class Dinov3ImageProcessor(TorchvisionBackend):
    """Images to `pixel_values` [B,3,H,W]: rescale to [0,1], resize, centre crop, normalise.

    The defaults are those of the published checkpoints' processor (224x224, bilinear, antialiased, ImageNet
    statistics), with the same output bit for bit. The evaluation protocols resize the shorter side instead:
    `Dinov3ImageProcessor(size={"shortest_edge": 256}, resample=3, do_center_crop=True, crop_size=224)`.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | InterpolationMode | int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        disable_grouping: bool | None,
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        if do_rescale and all(image.is_floating_point() and image.max() <= 1 for image in images):
            logger.warning_once(
                "Images already lie in [0, 1] and do_rescale=True divides them again: "
                "pass do_rescale=False for such input."
            )
        groups, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        for shape, stacked in groups.items():
            # Rescaling comes first, so that the resize is not rounded to integers.
            if do_rescale:
                stacked = self.rescale(stacked, rescale_factor)
            if do_resize:
                stacked = self.resize(image=stacked, size=size, resample=resample, antialias=True)
            if do_center_crop:
                stacked = self.center_crop(stacked, crop_size)
            if do_normalize:
                stacked = self.normalize(stacked, image_mean, image_std)
            groups[shape] = stacked
        return BatchFeature(data={"pixel_values": reorder_images(groups, order)}, tensor_type=return_tensors)


# Saved processors carry their code, as saved models do.
Dinov3ImageProcessor.register_for_auto_class()

__all__ = ["Dinov3ImageProcessor"]
