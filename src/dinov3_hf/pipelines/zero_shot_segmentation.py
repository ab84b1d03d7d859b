"""Zero-shot segmentation as a pipeline for transformers, which has no such task of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, Pipeline
from transformers.image_utils import load_image
from transformers.utils import logging

from ..errors import Refused
from .class_embeddings import check_class_names, check_templates, class_embeddings, unknown_words
from .class_maps import best_class, class_maps, fit_image, window_and_stride


logger = logging.get_logger(__name__)

TASK = "zero-shot-image-segmentation"


class ZeroShotImageSegmentationPipeline(Pipeline):
    """Segments an image by any list of labels with a `DinoTxtModel`: `pipeline("zero-shot-image-segmentation")`.

    Raises:
        Refused: for a model without patch features.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "get_patch_features"):
            raise Refused(f"model: got a {type(self.model).__name__}, accepted: a DinoTxtModel")

    def __call__(
        self,
        image: str | Image.Image | list,
        candidate_labels: Sequence[str],
        templates: Sequence[str] | None = None,
        background_threshold: float | None = None,
        window: int | None = None,
        stride: int | None = None,
        scales: Sequence[float] = (1.0,),
        whole_windows: bool = False,
        timeout: float | None = None,
        num_workers: int | None = None,
    ) -> list[dict] | list[list[dict]]:
        """Assign every pixel to the label with the most similar prompts; return the masks of the labels that occur.

        Args:
            image: a path, a URL or a PIL image, or a list of them.
            candidate_labels: names of things that may be in the image.
            templates: prompts with {} for the label; by default some of which the model knows all words.
            background_threshold: pixels for which the largest cosine is less than this above the mean of all labels
                get no label.
            window: side in pixels of the sliding windows; by default that of the training images.
            stride: stride of the windows in pixels, by default two thirds of a window.
            scales: factors by which the image is resized; logits are averaged over them.
            whole_windows: add the similarity of each whole window to those of its patches.
            timeout: seconds to wait for an image from a URL.
            num_workers: number of processes that read a list of images.

        Returns:
            A list with one dictionary per label that occurs, in the order given: `label`, `score` (the mean cosine
            over the mask) and `mask` (a PIL image of the same size, mode L, 255 inside). For a list of images a list
            of such lists.

        Raises:
            Refused: for labels that are not strings or occur twice, templates without {}, and windows that do not fit
                the patch size.
        """
        labels = check_class_names(candidate_labels, "candidate_labels")
        texts = labels if templates is None else [*labels, *(x.replace("{}", "") for x in check_templates(templates))]
        if unknown := unknown_words(self.tokenizer, texts):
            logger.warning(f"Words that the text tower was never taught: {', '.join(unknown)}.")
        window, stride = window_and_stride(self.model, window, stride)
        return super().__call__(
            image,
            labels=labels,
            embeddings=class_embeddings(self.model, self.tokenizer, labels, templates, part="patch"),
            image_embeddings=class_embeddings(self.model, self.tokenizer, labels, templates)
            if whole_windows
            else None,
            background_threshold=background_threshold,
            window=window,
            stride=stride,
            scales=tuple(scales),
            timeout=timeout,
            num_workers=num_workers,
            # Images have different sizes; the batches are made of the windows of one image.
            batch_size=1,
        )

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        def pick(*names: str) -> dict[str, Any]:
            return {name: given[name] for name in names if name in given}

        return (
            pick("window", "timeout"),
            pick("embeddings", "image_embeddings", "window", "stride", "scales"),
            pick("labels", "background_threshold"),
        )

    def preprocess(self, image: str | Image.Image, window: int, timeout: float | None = None) -> dict[str, Any]:
        loaded = load_image(image, timeout=timeout)
        patch_size = self.model.config.vision_config.patch_size
        pixel_values = fit_image(loaded, self.image_processor, window, patch_size)
        return {"pixel_values": pixel_values, "size": (loaded.height, loaded.width)}

    def _forward(
        self, inputs: dict[str, Any], **windows: torch.Tensor | int | Sequence[float] | None
    ) -> dict[str, torch.Tensor]:
        maps = class_maps(self.model, inputs["pixel_values"], size=inputs["size"], **windows)
        best, classes, margin = best_class(maps)
        return {"best": best, "classes": classes, "margin": margin}

    def postprocess(self, outputs: dict, labels: list[str], background_threshold: float | None = None) -> list[dict]:
        best, classes = outputs["best"], outputs["classes"]
        counted = torch.ones_like(best, dtype=torch.bool)
        if background_threshold is not None:
            counted = outputs["margin"] >= background_threshold
        segments = []
        for index, label in enumerate(labels):
            inside = (classes == index) & counted
            if inside.any():
                mask = Image.fromarray(inside.numpy().astype(np.uint8) * 255)
                segments.append({"label": label, "score": best[inside].mean().item(), "mask": mask})
        return segments


def register() -> None:
    """Add the task to the pipelines of transformers, unless it is already there."""
    # Imported here, because reloading the module of transformers creates a new registry.
    from transformers.pipelines import PIPELINE_REGISTRY

    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=ZeroShotImageSegmentationPipeline,
            pt_model=AutoModelForZeroShotImageClassification,
            type="multimodal",
        )


register()


__all__ = ["ZeroShotImageSegmentationPipeline"]
