"""Zero-shot segmentation by words as a pipeline of transformers, which has no task for it."""

from collections.abc import Sequence

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
    """Masks of an image for labels of one's own, by a `DinoTxtModel`: `pipeline("zero-shot-image-segmentation")`.

    Raises:
        Refused: a model without patch features.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args, **kwargs):
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
        """Give every pixel the label whose prompts are nearest, and return the mask of each label that has pixels.

        Args:
            image: a path, a URL or a PIL image, or a list of them.
            candidate_labels: names of what may be in the image.
            templates: prompts with {} for the label; by default some whose words the model knows.
            background_threshold: how far the best label's cosine must stand above the mean of all labels; a pixel where it
                does not has no label.
            window: side in pixels of the windows that go through the network; by default that of the images trained on.
            stride: step in pixels between windows, by default two thirds of one.
            scales: sizes of the image, relative to its own, over which logits are averaged.
            whole_windows: count what each window shows as a whole, besides its patches.
            timeout: seconds to wait for an image at a URL.
            num_workers: processes that read images of a list.

        Returns:
            For each label in the order given: `label`, `score` (its mean cosine over the mask) and `mask`, a PIL image
            of the image's size (mode L, 255 inside); a list of such lists for a list of images.

        Raises:
            Refused: labels that are no texts or come twice, templates without {}, windows that do not fit patches.
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
            # Images keep their sizes; what is batched are the windows of one.
            batch_size=1,
        )

    def _sanitize_parameters(self, **given):
        def pick(*names):
            return {name: given[name] for name in names if name in given}

        return (
            pick("window", "timeout"),
            pick("embeddings", "image_embeddings", "window", "stride", "scales"),
            pick("labels", "background_threshold"),
        )

    def preprocess(self, image, window: int, timeout: float | None = None) -> dict:
        image = load_image(image, timeout=timeout)
        patch_size = self.model.config.vision_config.patch_size
        pixel_values = fit_image(image, self.image_processor, window, patch_size)
        return {"pixel_values": pixel_values, "size": (image.height, image.width)}

    def _forward(self, inputs: dict, **windows) -> dict:
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
    """Add the task to transformers' pipelines, unless it is there."""
    # Asked for here, because loading transformers' module again makes another.
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
