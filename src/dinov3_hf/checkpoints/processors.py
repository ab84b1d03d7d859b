"""Find the image processor saved with a model, by this package, transformers or timm."""

import math
import os
from collections.abc import Sequence

from transformers import AutoImageProcessor, BaseImageProcessor, DINOv3ViTImageProcessor
from transformers.utils import cached_file

from ..errors import Refused
from ..models.image_processing_dinov3 import Dinov3ImageProcessor
from ..provenance import is_local
from .loading import read_config, readable


PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def has_processor(name: str, field: str) -> bool:
    """Say whether a directory or hub id holds an image processor; `Refused` if the hub does not answer."""
    if is_local(name):
        has_file = any(os.path.isfile(os.path.join(name, file)) for file in PROCESSOR_FILES)
    else:
        with readable(name, field):
            has_file = any(
                cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in PROCESSOR_FILES
            )
    return has_file or read_config(name, field).get("model_type") == "timm_wrapper"


def find_processor(name: str, field: str = "model") -> BaseImageProcessor | None:
    """Return the image processor of a model (directory or hub id), or None if it has none.

    It is one of transformers' own classes if that gives the same result; timm's statistics, from config.json, become
    such a processor too. Raises `Refused`, naming `field`, for a processor that cannot be read.
    """
    if os.path.isfile(name) or not has_processor(name, field):
        return None
    with readable(f"{name}: {PROCESSOR_FILES[0]}", field):
        processor = AutoImageProcessor.from_pretrained(name)
        if timm := getattr(processor, "data_config", None):
            size = {"height": timm["input_size"][1], "width": timm["input_size"][2]}
            statistics = {"image_mean": list(timm["mean"]), "image_std": list(timm["std"])}
            processor = DINOv3ViTImageProcessor(size=size, **statistics, do_convert_rgb=True)
        image_side(processor)
    check_statistics(processor, name, field)
    if isinstance(processor, Dinov3ImageProcessor) and not processor.do_center_crop and processor.value_range is None:
        # A processor of ours would have to be saved with its code; only it knows a range of values.
        same = (
            "size",
            "resample",
            "image_mean",
            "image_std",
            "do_resize",
            "do_rescale",
            "do_normalize",
            "rescale_factor",
        )
        return DINOv3ViTImageProcessor(do_convert_rgb=True, **{field: getattr(processor, field) for field in same})
    return processor


def check_statistics(processor: BaseImageProcessor, name: str, field: str) -> None:
    """Raise `Refused` if a processor's mean and standard deviation are not finite numbers, one of each per channel."""
    mean, std = processor.image_mean, processor.image_std
    lists = all(isinstance(values, list | tuple) for values in (mean, std)) and len(mean) == len(std)
    numbers = lists and all(isinstance(value, int | float) and math.isfinite(value) for value in (*mean, *std))
    if not numbers or min(std) <= 0:
        accepted = "two lists of numbers of the same length, std above 0"
        raise Refused(f"{field}: the image processor of {name!r} has mean {mean} and std {std}, accepted: {accepted}")


def processor_for(name: str, image_size: int | Sequence[int], field: str = "model") -> BaseImageProcessor:
    """Return the image processor of a model; if it has none, say so and return the default one for `image_size`."""
    processor = find_processor(name, field)
    if processor is not None:
        return processor
    side = image_size if isinstance(image_size, int) else image_size[0]
    print(f"{field}: {name} has no image processor; using {side} pixels and ImageNet's mean and standard deviation")
    return DINOv3ViTImageProcessor(size={"height": side, "width": side}, do_convert_rgb=True)


def image_side(processor: BaseImageProcessor) -> int:
    """Return the side in pixels of the images that a processor makes: of its crop, or of its resize without one."""
    size = dict(processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size)
    return size.get("height") or size["shortest_edge"]
