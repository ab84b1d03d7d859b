"""Linear segmentation on frozen patch tokens (DINOv3, section 6.1.2)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..data.masks import (
    IGNORE_INDEX,
    check_classes,
    check_mask_column,
    check_mask_values,
    ignored_in_classes,
    map_values,
    read_mask,
)
from ..data.views import check_image_size
from ..errors import Refused
from ..visualization.classes import classes_picture
from .bench import Bench
from .dense_probe import (
    Crops,
    DenseSplit,
    HeadTraining,
    head_outputs,
    rows_to_draw,
    skipped,
    train_heads,
    upsample,
)
from .intervals import bootstrap_interval, mean_iou, pixel_accuracy, with_interval
from .iou import CHANCE, chance_accuracy, chance_iou, confusion_counts, confusion_matrix, intersection_over_union
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

PAPER_STEPS = 40_000
PAPER_SCALES = (0.5, 2.0)


def evaluate_segmentation(
    bench: Bench,
    train: "Dataset",
    test: "Dataset",
    image_column: str = "image",
    mask_column: str = "mask",
    ignore_index: int = IGNORE_INDEX,
    batch_norm: bool = True,
    steps: int = PAPER_STEPS,
    crop: int | None = None,
    batch_size: int = 16,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    augment: bool = False,
    class_names: Sequence[str] | None = None,
    mask_values: Sequence[int] = (),
) -> Result:
    """Measure linear segmentation; baselines are the randomly initialised network and the patches' raw pixels.

    A linear layer predicts logits for each patch, upsampled bilinearly to the pixels. It is trained on crops of `crop`
    pixels (by default image_size) and tested on whole images, at the stored size of each mask. mIoU is the mean over
    the classes (background included) that occur in `test`; a class missing from `train` is never predicted and counts
    as 0. `mask_values` are the stored values of the classes in order (see `map_values`). Raises `Refused` for masks
    with fewer than two classes.
    """
    view = bench.preprocessing
    crop = view.image_size if crop is None else crop
    training = HeadTraining(batch_norm, steps, crop, batch_size, lr, weight_decay, augment, PAPER_SCALES)
    training.check(bench.patch_size)
    check_image_size(view.image_size, bench.patch_size)
    learnt, tested = (
        DenseSplit(f"segmentation: {name}", rows, image_column, "mask_column")
        for name, rows in (("train", train), ("test", test))
    )
    for split in (learnt, tested):
        check_mask_column(split.rows, mask_column)
    check_mask_values(mask_values)
    stored, ignore_index = ignore_index, ignored_in_classes(mask_values, ignore_index)
    for split in (learnt, tested):
        stored_pixels: Counter[int] = Counter()
        split.read_maps(
            mask_column,
            read_labels,
            lambda labels: bool((labels != ignore_index).any()),
            bench.progress,
            partial(read_classes, counts=stored_pixels, mask_values=mask_values, ignore_index=stored),
        )
        check_classes(stored_pixels, mask_column, split.title, mask_values, stored)
    largest = max(largest_label(split, ignore_index) for split in (learnt, tested))
    names = list_names(largest, class_names or [str(value) for value in mask_values])
    learnt.find_features(bench, compute=not augment)
    tested.find_features(bench)
    train_pixels = sum(count_pixels(labels, ignore_index, len(names)) for labels in learnt.maps.values())
    known = train_pixels.nonzero()[:, 0]

    confusions, chosen = {}, rows_to_draw(tested)
    predictions: dict[str, dict[int, np.ndarray]] = {}
    counts: dict[str, list[np.ndarray]] = {}
    heads = train_heads(
        bench,
        learnt,
        len(names),
        lambda crops: segmentation_loss(crops, ignore_index),
        training,
        ("segmentation", mask_column, ignore_index, len(names)),
    )
    for name, head in heads:
        confusions[name], predictions[name] = torch.zeros(len(names), len(names), dtype=torch.long), {}
        counts[name] = []
        for row, outputs, labels in head_outputs(bench, tested, name, head):
            predicted = predict_classes(outputs, labels.shape, known)
            labels = torch.from_numpy(labels).long()
            counted = labels != ignore_index
            of_image = confusion_matrix(predicted[counted], labels[counted], len(names))
            confusions[name] += of_image
            counts[name].append(confusion_counts(of_image))
            if row in chosen:
                predictions[name][row] = predicted.numpy()

    pixels = confusions["model"].sum(1)
    iou = {name: intersection_over_union(confusion) for name, confusion in confusions.items()}
    hits = {name: (of.diagonal().sum().double() / of.sum()).item() for name, of in confusions.items()}
    iou["chance"], hits["chance"] = chance_iou(confusions["model"]), chance_accuracy(confusions["model"])
    images = np.stack(counts["model"])
    drawn = {name: predictions[name] for name in bench.networks}
    examples = [(tested.image(row), [tested.maps[row], *(of[row] for of in drawn.values())]) for row in chosen]
    return Result(
        task="segmentation",
        protocol={
            **training.describe(),
            "loss": "cross-entropy of logits upsampled bilinearly to the masks, resized to what the network sees",
            "measured_on": "logits upsampled bilinearly to each mask's own size, all test pixels together",
            "mIoU": "mean over the classes of the test pixels, background included",
            "num_train": len(learnt.maps),
            "num_test": len(tested.maps),
            "num_classes": len(names),
            "num_classes_present": int((pixels > 0).sum()),
            "classes_not_in_train": [names[index] for index in (pixels * (train_pixels == 0)).nonzero()[:, 0]],
            "ignore_index": stored,
            "mask_values": list(mask_values),
            "preprocessing": asdict(view),
            "seed": bench.seed,
            "raw_pixels": "the pixels of the patch, normalised as the network's input, flattened",
            "chance": CHANCE,
        },
        **skipped(learnt, tested),
        metrics=[
            {"metric": "mIoU", **{name: values.nanmean().item() for name, values in iou.items()}}
            | with_interval(bootstrap_interval(images, mean_iou, bench.seed)),
            {"metric": "pixel accuracy", **hits}
            | with_interval(bootstrap_interval(images, pixel_accuracy, bench.seed)),
        ],
        pictures={"segmentation": classes_picture(["true", *drawn], examples, names, ignore_index)},
        details={
            "per_class": [
                {
                    "class": names[index],
                    "pixels": int(pixels[index]),
                    **{name: values[index].item() for name, values in iou.items() if name != "chance"},
                }
                for index in pixels.nonzero()[:, 0]
            ],
        },
    )


def read_labels(value: dict) -> np.ndarray:
    """Read an undecoded value of a mask column [H,W], in uint8 if its values fit, else in int32."""
    return compact(read_mask(value).numpy())


def read_classes(
    labels: np.ndarray, counts: Counter[int], mask_values: Sequence[int], ignore_index: int
) -> np.ndarray:
    """Return the classes of a mask [H,W] of stored values, whose pixels are added to `counts`."""
    values, pixels = np.unique(labels, return_counts=True)
    counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
    if not len(mask_values):
        return labels
    return compact(map_values(torch.from_numpy(labels).long(), mask_values, ignore_index).numpy())


def compact(labels: np.ndarray) -> np.ndarray:
    """Return integers [H,W] in uint8 if they fit, else in int32."""
    small = 0 <= labels.min() and labels.max() <= np.iinfo(np.uint8).max
    return labels.astype(np.uint8 if small else np.int32)


def largest_label(split: DenseSplit, ignore_index: int) -> int:
    """Return the largest class index of a split's masks; raises `Refused` for negative indices."""
    largest = 0
    for row, labels in split.maps.items():
        labels = labels[labels != ignore_index]
        if labels.min() < 0:
            raise Refused(
                f"mask_column: row {row} of {split.title} has a pixel of {labels.min()}, accepted: class indices from "
                f"0, and ignore_index ({ignore_index})"
            )
        largest = max(largest, int(labels.max()))
    return largest


def list_names(largest: int, class_names: Sequence[str] | None) -> list[str]:
    """Return a name for each class, by default its index; raises `Refused` for fewer names than classes."""
    if not class_names:
        return [str(index) for index in range(largest + 1)]
    if largest >= len(class_names):
        raise Refused(
            f"class_names: got {len(class_names)} names for masks with class {largest}, accepted: a name for each"
        )
    return list(class_names)


def count_pixels(labels: np.ndarray, ignore_index: int, num_classes: int) -> torch.Tensor:
    """Return the number of pixels of each class [K] in a mask [H,W]."""
    return torch.from_numpy(np.bincount(labels[labels != ignore_index], minlength=num_classes))


def segmentation_loss(crops: list[Crops], ignore_index: int = IGNORE_INDEX) -> torch.Tensor:
    """Mean cross-entropy over pixels that are not ignored; logits [b,h,w,K] are upsampled to labels [b,H,W]."""
    losses, counts = [], []
    for logits, labels in crops:
        labels, logits = labels.long(), upsample(logits.movedim(-1, 1), labels.shape[1:])
        losses.append(nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum"))
        counts.append((labels != ignore_index).sum())
    return sum(losses) / sum(counts).clamp(min=1)


def predict_classes(outputs: torch.Tensor, size: tuple[int, int], known: torch.Tensor) -> torch.Tensor:
    """Return the class of every pixel [H,W], one of `known`, from logits [1,h,w,K] upsampled bilinearly to `size`."""
    logits = outputs[..., known.to(outputs.device)].movedim(-1, 1)
    best = nn.functional.interpolate(logits, size=size, mode="bilinear").argmax(1)[0]
    return known[best.cpu()]
