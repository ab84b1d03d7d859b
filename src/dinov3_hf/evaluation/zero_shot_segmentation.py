"""Zero-shot segmentation by class names (dino.txt; DINOv3, section 5.3): patch features against class embeddings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..data.columns import check_column, undecoded
from ..data.masks import (
    IGNORE_INDEX,
    check_classes,
    check_mask_values,
    count_values,
    ignored_in_classes,
    map_values,
    read_mask,
)
from ..data.pixels import BadImage, check_turned_alike, decode_image
from ..errors import Refused
from ..pipelines.class_embeddings import (
    check_class_names,
    check_templates,
    class_embeddings,
    default_templates,
    unknown_words,
)
from ..pipelines.class_maps import best_class, class_maps, fit_image, segment, window_and_stride
from ..terminal import progress_bar
from .intervals import bootstrap_interval, mean_iou, pixel_accuracy, with_interval
from .iou import CHANCE, chance_accuracy, chance_iou, confusion_counts, confusion_matrix, intersection_over_union
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

    from ..models.processing_dinotxt import DinoTxtProcessor


def evaluate_zero_shot_segmentation(
    model: nn.Module,
    processor: "DinoTxtProcessor",
    rows: "Dataset",
    class_names: Sequence[str],
    templates: Sequence[str] | None = None,
    image_column: str = "image",
    mask_column: str = "mask",
    background: int | None = None,
    background_threshold: float | None = None,
    ignore_index: int = IGNORE_INDEX,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    whole_windows: bool = False,
    progress: bool = True,
    mask_values: Sequence[int] = (),
) -> Result:
    """Measure zero-shot mIoU and pixel accuracy of a `DinoTxtModel`, and those of answers without looking.

    `class_names` are the names of the mask values, in order from 0. `whole_windows` adds the image feature of each
    window to the scores of its patches. The class with index `background` is predicted where no other class exceeds
    the mean cosine of all by `background_threshold` (see `segment`); without a threshold it is predicted by its name,
    like any other class. Metrics are computed at the stored size of each mask. "per_class" holds pixels, IoU and
    chance of each class present. `mask_values` are the stored values of the classes in order (see `map_values`).
    Raises `Refused` for invalid settings, for a mask value without a name, and for masks with fewer than two classes.
    """
    names, tokenizer = check_class_names(class_names), processor.tokenizer
    templates = default_templates(tokenizer) if templates is None else check_templates(templates)
    check_column(rows, image_column, "image_column")
    check_column(rows, mask_column, "mask_column")
    if type(rows.features[mask_column]).__name__ != "Image":
        raise Refused(f"mask_column: got {mask_column!r}, accepted: a column of images with class indices as pixels")
    if background is not None and not 0 <= background < len(names):
        raise Refused(f"background: got {background}, accepted: an index of class_names (0 to {len(names) - 1})")
    if background_threshold is not None and background is None:
        raise Refused(
            f"background_threshold: got {background_threshold}, accepted: only with a background class among the names"
        )
    check_mask_values(mask_values)
    check_classes(count_values(rows, mask_column), mask_column, "test", mask_values, ignore_index)
    stored, ignore_index = ignore_index, ignored_in_classes(mask_values, ignore_index)
    prompted = [index for index in range(len(names)) if index != background or background_threshold is None]
    prompts = [names[index] for index in prompted]
    embeddings = class_embeddings(model, tokenizer, prompts, templates, part="patch")
    image_embeddings = class_embeddings(model, tokenizer, prompts, templates, part="image") if whole_windows else None
    window, stride = window_and_stride(model, window, stride)
    patch = model.config.vision_config.patch_size
    # The last entry, to which BACKGROUND (-1) points, is for pixels below the threshold.
    value_of = torch.tensor([*prompted, -1 if background is None else background])
    confusion = torch.zeros(len(names), len(names), dtype=torch.long)
    unreadable, misfit, counts = 0, 0, []
    rows = undecoded(rows.select_columns([image_column, mask_column]))
    bar = progress_bar(rows, desc="zero-shot-segmentation", unit="image", disable=not progress)
    for number, row in enumerate(bar):
        try:
            image, mask = decode_image(row[image_column]), read_mask(row[mask_column] or {"path": ""})
        except (BadImage, OSError):
            unreadable += 1
            continue
        if image.shape[-2:] != mask.shape:
            misfit += 1
            continue
        check_turned_alike(row[image_column], row[mask_column], number, "mask_column")
        mask = map_values(mask, mask_values, stored)
        counted = mask != ignore_index
        labels = mask[counted]
        _check_values(labels, mask_column, len(names), ignore_index)
        pixel_values = fit_image(image, processor.image_processor, window, patch)
        size = tuple(mask.shape)
        maps = class_maps(model, pixel_values, embeddings, window, stride, scales, size, image_embeddings)
        predicted = value_of[segment(maps, background_threshold).cpu()[counted]]
        of_image = confusion_matrix(predicted, labels, len(names))
        confusion += of_image
        counts.append(confusion_counts(of_image))
    if not confusion.sum():
        raise Refused(f"mask_column: none of the {len(rows)} rows can be decoded and has a pixel that counts")
    iou, chance, pixels = intersection_over_union(confusion), chance_iou(confusion), confusion.sum(1)
    accuracy = int(confusion.diagonal().sum()) / int(confusion.sum())
    return Result(
        task="zero-shot-segmentation",
        protocol={
            "features": "patch features against the patch half of class embeddings, cosine",
            "class_names": names,
            "templates": templates,
            "unknown_words": unknown_words(
                tokenizer, [*(names[index] for index in prompted), *(x.replace("{}", "") for x in templates)]
            ),
            "background": None if background is None else names[background],
            "background_threshold": background_threshold,
            "window": window,
            "stride": stride,
            "scales": list(scales),
            "whole_windows": whole_windows,
            "num_test": len(rows) - unreadable - misfit,
            "num_classes": len(names),
            "num_classes_present": int((pixels > 0).sum()),
            "mIoU": "on the pixels of the masks, mean over the classes present",
            "ignore_index": stored,
            "mask_values": list(mask_values),
            "chance": CHANCE,
        },
        skipped_images={"test": unreadable},
        skipped_rows={"mask of another size than its image": misfit},
        metrics=[
            {"metric": "mIoU", "model": iou.nanmean().item(), "chance": chance.nanmean().item()}
            | with_interval(bootstrap_interval(np.stack(counts), mean_iou)),
            {"metric": "pixel accuracy", "model": accuracy, "chance": chance_accuracy(confusion)}
            | with_interval(bootstrap_interval(np.stack(counts), pixel_accuracy)),
        ],
        details={
            "per_class": [
                {
                    "class": name,
                    "pixels": int(pixels[index]),
                    "model": iou[index].item(),
                    "chance": chance[index].item(),
                }
                for index, name in enumerate(names)
                if pixels[index]
            ],
        },
    )


def choose_background_threshold(
    model: nn.Module,
    processor: "DinoTxtProcessor",
    rows: "Dataset",
    class_names: Sequence[str],
    templates: Sequence[str],
    scales: Sequence[float] = (1.0,),
    whole_windows: bool = False,
) -> float:
    """Return the background threshold among 0.05, 0.075, ..., 0.6 with the best mIoU on `rows` (not the test rows).

    `rows` has the columns `image` and `mask`; class 0 is the background.
    """
    thresholds = [round(0.025 * step, 3) for step in range(2, 25)]
    names, tokenizer = list(class_names[1:]), processor.tokenizer
    embeddings = class_embeddings(model, tokenizer, names, templates, part="patch")
    image_embeddings = class_embeddings(model, tokenizer, names, templates) if whole_windows else None
    window, stride = window_and_stride(model)
    confusions = torch.zeros(len(thresholds), len(class_names), len(class_names), dtype=torch.long)
    for row in undecoded(rows.select_columns(["image", "mask"])):
        mask = read_mask(row["mask"])
        pixels = fit_image(
            decode_image(row["image"]), processor.image_processor, window, model.config.vision_config.patch_size
        )
        maps = class_maps(model, pixels, embeddings, window, stride, scales, tuple(mask.shape), image_embeddings)
        _, classes, margin = (values.cpu() for values in best_class(maps))
        counted = mask != IGNORE_INDEX
        for threshold, confusion in zip(thresholds, confusions, strict=True):
            predicted = torch.where(margin >= threshold, classes + 1, 0)
            confusion += confusion_matrix(predicted[counted], mask[counted], len(class_names))
    scores = [intersection_over_union(confusion).nanmean().item() for confusion in confusions]
    return thresholds[scores.index(max(scores))]


def _check_values(labels: torch.Tensor, mask_column: str, num_classes: int, ignore_index: int) -> None:
    strange = labels[(labels < 0) | (labels >= num_classes)]
    if len(strange):
        raise Refused(
            f"mask_column: {mask_column!r} holds the value {int(strange[0])}, accepted: 0 to {num_classes - 1}, one "
            f"of class_names, or ignore_index ({ignore_index})"
        )
