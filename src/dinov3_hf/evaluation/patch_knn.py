"""k-nearest-neighbour segmentation on patch tokens: what dense features know before anything is trained on them."""

import io
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image
from torch import nn

from .features import (
    Preprocessing,
    check_column,
    check_image_size,
    patch_features,
    raw_patch_features,
    read_batches,
    undecoded,
    untrained_twin,
)
from .knn import TEMPERATURE, NeighbourBank


IGNORE_INDEX = 255
MASK_MODES = ("1", "L", "P", "I", "I;16")


def read_mask(value) -> torch.Tensor:
    """Read a mask column's undecoded value (`bytes` or `path`) as class indices [H,W]; ValueError for colour images."""
    with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]) as picture:
        if picture.mode not in MASK_MODES:
            raise ValueError(f"mask: got an image of mode {picture.mode}, accepted: one channel of class indices")
        return torch.from_numpy(np.asarray(picture).astype(np.int64))


def patch_labels(masks: torch.Tensor, patch_size: int, ignore_index: int = IGNORE_INDEX) -> torch.Tensor:
    """Give every patch of masks [B,H,W] the class of most of its pixels; returns [B,P], row by row.

    Ignored pixels vote as one class of their own; between equal votes the smaller class index wins.
    """
    pixels = (
        masks.unflatten(1, (-1, patch_size)).unflatten(3, (-1, patch_size)).transpose(2, 3).flatten(3).flatten(1, 2)
    )
    num_classes = int(pixels.masked_fill(pixels == ignore_index, 0).max()) + 1
    pixels = pixels.masked_fill(pixels == ignore_index, num_classes)
    votes = torch.zeros(*pixels.shape[:2], num_classes + 1, dtype=torch.long)
    votes.scatter_add_(2, pixels, torch.ones_like(pixels))
    # The last term decides between equal votes, which argmax leaves open.
    winners = (votes * (num_classes + 2) - torch.arange(num_classes + 1)).argmax(2)
    return winners.masked_fill(winners == num_classes, ignore_index)


def confusion_matrix(predictions: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Count predictions [Q] per label [Q]; returns [K,K], rows are labels."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: torch.Tensor) -> torch.Tensor:
    """IoU of each class [K] from a confusion matrix [K,K]; NaN for classes that no label has."""
    hits, labelled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    return torch.where(labelled > 0, hits / (labelled + predicted - hits), torch.nan)


def evaluate_patch_knn(
    model: nn.Module,
    train,
    test,
    preprocessing: Preprocessing,
    image_column: str = "image",
    mask_column: str = "mask",
    ks: Sequence[int] = (10, 20),
    batch_size: int = 64,
    seed: int = 0,
    controls: bool = True,
    progress: bool = True,
    max_bank_patches: int = 50_000,
    ignore_index: int = IGNORE_INDEX,
) -> dict:
    """Measure patch k-NN of `model` on two `datasets.Dataset`s, beside its untrained twin and the patches' raw pixels.

    The bank holds the patches of all train images, or the same number of random patches from each where all would
    exceed `max_bank_patches`. mIoU and accuracy are counted on the grid of patches, against the majority class of each
    patch's pixels; mIoU is the mean over the classes (background included) that the test patches have. Returns a
    JSON-ready dictionary as `evaluate_knn` does. `seed` gives the untrained weights and the choice of patches.
    """
    patch_size = model.config.patch_size
    check_image_size(preprocessing.image_size, patch_size)
    for rows in (train, test):
        check_column(rows, image_column, "image_column")
        check_column(rows, mask_column, "mask_column")
        if type(rows.features[mask_column]).__name__ != "Image":
            raise ValueError(
                f"mask_column: got {mask_column!r}, accepted: a column of images with class indices as pixels"
            )
        # Colour pictures are refused here: later they would only count as rows that cannot be read.
        read_mask(undecoded(rows.select_columns([mask_column]))[0][mask_column])
    num_patches = (preprocessing.image_size // patch_size) ** 2
    per_image = min(num_patches, max(1, max_bank_patches // len(train)))
    ks = sorted(set(ks))
    if not 1 <= ks[0] <= ks[-1] <= len(train) * per_image:
        raise ValueError(f"k: got {ks}, accepted: 1 to the number of train patches ({len(train) * per_image})")
    extractors = {"model": patch_features(model)}
    if controls:
        twin = untrained_twin(model, seed)
        extractors |= {"untrained": patch_features(twin), "raw_pixels": raw_patch_features(patch_size)}

    def read(rows, description):
        for pixel_values, masks in read_batches(
            rows,
            image_column,
            mask_column,
            lambda value: preprocessing.mask(read_mask(value)),
            preprocessing,
            batch_size,
            progress,
            description,
        ):
            yield pixel_values.to(model.device), patch_labels(masks, patch_size, ignore_index)

    generator = torch.Generator().manual_seed(seed)
    parts, part_labels, num_train, num_test = {name: [] for name in extractors}, [], 0, 0
    for pixel_values, labels in read(train, "patch-knn: train images"):
        num_train += len(labels)
        chosen = torch.rand(labels.shape, generator=generator).topk(per_image, dim=1).indices
        counted = labels.gather(1, chosen) != ignore_index
        rows = torch.arange(len(labels))[:, None].expand_as(chosen)[counted]
        columns = chosen[counted]
        for name, extract in extractors.items():
            parts[name].append(extract(pixel_values)[rows, columns])
        part_labels.append(labels[rows, columns])
    if not part_labels or not sum(map(len, part_labels)):
        raise ValueError(
            f"mask_column: none of the {len(train)} train rows has a patch that can be decoded and counts"
        )
    bank_labels = torch.cat(part_labels)
    num_bank_classes = int(bank_labels.max()) + 1
    banks = {name: NeighbourBank(torch.cat(parts.pop(name)), bank_labels, num_bank_classes) for name in extractors}
    found, truth = {name: {k: [] for k in ks} for name in extractors}, []
    for pixel_values, labels in read(test, "patch-knn: test images"):
        num_test += len(labels)
        counted = labels != ignore_index
        for name, extract in extractors.items():
            for k, predictions in banks[name].classify(extract(pixel_values)[counted], ks).items():
                found[name][k].append(predictions.cpu())
        truth.append(labels[counted])
    if not truth or not sum(map(len, truth)):
        raise ValueError(f"mask_column: none of the {len(test)} test rows has a patch that can be decoded and counts")
    truth = torch.cat(truth)
    num_classes = max(num_bank_classes, int(truth.max()) + 1)
    confusions = {
        name: {k: confusion_matrix(torch.cat(found[name][k]), truth, num_classes) for k in ks} for name in extractors
    }
    most_frequent = torch.full_like(truth, int(bank_labels.bincount().argmax()))
    constant = confusion_matrix(most_frequent, truth, num_classes)
    measures = []
    for title, measure in (("mIoU", _mean_iou), ("patch accuracy", _accuracy)):
        for k in ks:
            values = {name: measure(confusions[name][k]) for name in extractors}
            measures.append({"measure": title, "k": k, **values, "chance": measure(constant)})
    by_class = {name: intersection_over_union(confusions[name][ks[0]]) for name in extractors}
    present = confusions["model"][ks[0]].sum(1)
    return {
        "task": "patch-knn",
        "protocol": {
            "features": "final-normed patch tokens, L2-normalised, cosine",
            "weights": f"exp(similarity / {TEMPERATURE})",
            "ks": ks,
            "num_train": num_train,
            "num_test": num_test,
            "bank_patches": len(bank_labels),
            "patches_per_train_image": per_image,
            "test_patches": len(truth),
            "num_classes_present": int((present > 0).sum()),
            "patch_label": "majority of the patch's pixels",
            "mIoU": "on the patch grid, mean over the classes of the test patches, background included",
            "ignore_index": ignore_index,
            "preprocessing": asdict(preprocessing),
            "seed": seed,
            "raw_pixels": "the pixels of the patch, normalised as the network's input, flattened",
            "chance": "always the class most frequent in the bank",
        },
        "skipped_images": {"train": len(train) - num_train, "test": len(test) - num_test},
        "measures": measures,
        "per_class": [
            {"class": index, "patches": int(count), **{name: by_class[name][index].item() for name in extractors}}
            for index, count in enumerate(present)
            if count
        ],
    }


def _mean_iou(confusion: torch.Tensor) -> float:
    return intersection_over_union(confusion).nanmean().item()


def _accuracy(confusion: torch.Tensor) -> float:
    return (confusion.diagonal().sum() / confusion.sum()).item()
