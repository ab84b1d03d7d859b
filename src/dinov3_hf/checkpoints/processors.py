"""The image processor beside a model, whoever wrote it."""

from pathlib import Path

from transformers import AutoImageProcessor, DINOv3ViTImageProcessor

from ..models.image_processing_dinov3 import Dinov3ImageProcessor


def find_processor(name: str):
    """Return the image processor beside a model (directory or hub id), as a stock one where it can be, None without one.

    timm's statistics, which its directories keep in config.json, become a stock processor.
    """
    try:
        processor = None if Path(name).is_file() else AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError):
        return None
    if timm := getattr(processor, "data_config", None):
        size = {"height": timm["input_size"][1], "width": timm["input_size"][2]}
        statistics = {"image_mean": list(timm["mean"]), "image_std": list(timm["std"])}
        return DINOv3ViTImageProcessor(size=size, **statistics, do_convert_rgb=True)
    if isinstance(processor, Dinov3ImageProcessor) and not processor.do_center_crop:
        # Ours would need its code to travel along.
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


def processor_for(name: str, image_size: int | list[int]):
    """Return the image processor beside a model; a stock one for images of `image_size` where there is none."""
    side = image_size if isinstance(image_size, int) else image_size[0]
    return find_processor(name) or DINOv3ViTImageProcessor(size={"height": side, "width": side})


def image_side(processor) -> int:
    """Return the side in pixels of the images that a processor makes: of the crop if it crops, else of the resize."""
    asked = dict(processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size)
    return asked.get("height") or asked["shortest_edge"]
