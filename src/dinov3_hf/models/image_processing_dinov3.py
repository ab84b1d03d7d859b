"""Image processor of DINOv3."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.transforms import InterpolationMode
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .pixel_values_dinov3 import as_bytes, check_range, rgb_pixels


logger = logging.get_logger(__name__)


class Dinov3ImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Fields of `Dinov3ImageProcessor` that transformers does not know."""

    value_range: list[int | float] | tuple[int | float, int | float] | None


class Dinov3ImageProcessor(TorchvisionBackend):
    """Images to `pixel_values` [B,3,H,W]: rescale to [0,1], resize, centre crop, normalise.

    PIL images become RGB as `decode_image` reads them in training, upright and to the bit. `value_range` (low, high)
    says what is black and white in images of more than 8 bits a channel; it is saved with the processor, and
    `pixel_values_dinov3` has the rule. Arrays and tensors follow transformers: 0 to 255, or 0 to 1 with
    `do_rescale=False`; 16-bit unsigned arrays, and all but uint8 with a `value_range`, follow the rule too. Values
    outside are refused with a `ValueError`.

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
    value_range = None
    valid_kwargs = Dinov3ImageProcessorKwargs

    def __init__(self, **kwargs: Any):
        check_range(kwargs.get("value_range"))
        super().__init__(**kwargs)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        value_range: tuple[float, float] | None = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return one image as a tensor [C,H,W], uint8 unless it is a float array without a `value_range`."""
        check_range(value_range)
        value_range = None if value_range is None else (value_range[0], value_range[1])
        if isinstance(image, PIL.Image.Image):
            if do_convert_rgb:
                # Copied: what PIL holds cannot be written to.
                image = np.array(rgb_pixels(image, value_range).transpose(2, 0, 1), order="C")
                kwargs["input_data_format"] = "channels_first"
        else:
            image = _checked(image, value_range, do_rescale)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

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


def _checked(image: Any, value_range: tuple[float, float] | None, do_rescale: bool | None) -> Any:
    """Return an array or tensor whose values the rescaling may divide by 255; raises `ValueError` for any other."""
    name = str(image.dtype).removeprefix("torch.") if isinstance(image, torch.Tensor | np.ndarray) else None
    if name in (None, "uint8", "bool"):
        return image
    if value_range is not None or name == "uint16":
        if isinstance(image, torch.Tensor):
            # numpy knows no bfloat16.
            image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
        return as_bytes(image, value_range)
    least, most = (image.min(), image.max()) if 0 not in image.shape else (0, 0)
    if do_rescale and not (least >= 0 and most <= 255):
        raise ValueError(
            f"value_range: got none for {name} values from {least:g} to {most:g}, accepted: two numbers "
            "(what is black and what is white), values from 0 to 255, or do_rescale=False"
        )
    return image


# Saved processors carry their code, as saved models do.
Dinov3ImageProcessor.register_for_auto_class()

__all__ = ["Dinov3ImageProcessor"]
