"""k-nearest-neighbour segmentation on patch tokens: the quality of dense features without training a head."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.columns import check_column
from ..data.masks import (
    IGNORE_INDEX,
    check_classes,
    check_mask_column,
    check_mask_values,
    count_values,
    ignored_in_classes,
    map_values,
    read_masks,
)
from ..data.views import check_image_size
from ..errors import Refused
from ..pipelines.neighbours import TEMPERATURE, NeighbourBank
from .bench import Bench
from .feature_store import Features
from .intervals import bootstrap_interval, mean_iou, pixel_accuracy, with_interval
from .iou import CHANCE, chance_accuracy, chance_iou, confusion_counts, confusion_matrix, intersection_over_union
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset


def patch_labels(masks: torch.Tensor, patch_size: int, ignore_index: int = IGNORE_INDEX) -> torch.Tensor:
    """Return the majority class of each patch's pixels, [B,P] in row-major order, from masks [B,H,W].

    Ignored pixels vote as a class of their own; of tied classes the smaller index wins.
    """
    pixels = (
        masks.unflatten(1, (-1, patch_size)).unflatten(3, (-1, patch_size)).transpose(2, 3).flatten(3).flatten(1, 2)
    )
    num_classes = int(pixels.masked_fill(pixels == ignore_index, 0).max()) + 1
    pixels = pixels.masked_fill(pixels == ignore_index, num_classes)
    votes = torch.zeros(*pixels.shape[:2], num_classes + 1, dtype=torch.long)
    votes.scatter_add_(2, pixels, torch.ones_like(pixels))
    # The last term breaks ties, for which argmax guarantees no order.
    winners = (votes * (num_classes + 2) - torch.arange(num_classes + 1)).argmax(2)
    return winners.masked_fill(winners == num_classes, ignore_index)


def evaluate_patch_knn(
    bench: Bench,
    train: "Dataset",
    test: "Dataset",
    image_column: str = "image",
    mask_column: str = "mask",
    ks: Sequence[int] = (10, 20),
    max_bank_patches: int = 50_000,
    ignore_index: int = IGNORE_INDEX,
    mask_values: Sequence[int] = (),
) -> Result:
    """Measure patch k-NN; baselines are the randomly initialised network and the patches' raw pixels.

    The bank holds the patches of all train images, or equally many random patches of each image if all patches would
    exceed `max_bank_patches`. mIoU and accuracy are computed on the grid of patches, against the majority class of
    each patch's pixels; mIoU is the mean over the classes (background included) that occur in the test patches.
    `mask_values` are the stored values of the classes in order (see `map_values`). Raises `Refused` for masks with
    fewer than two classes.
    """
    patch_size, preprocessing = bench.patch_size, bench.preprocessing
    check_image_size(preprocessing.image_size, patch_size)
    for rows in (train, test):
        check_column(rows, image_column, "image_column")
        check_mask_column(rows, mask_column)
    num_patches = (preprocessing.image_size // patch_size) ** 2
    per_image = min(num_patches, max(1, max_bank_patches // len(train)))
    ks = sorted(set(ks))
    if not 1 <= ks[0] <= ks[-1] <= len(train) * per_image:
        raise Refused(f"k: got {ks}, accepted: 1 to the number of train patches ({len(train) * per_image})")
    check_mask_values(mask_values)
    for split, rows in (("train", train), ("test", test)):
        check_classes(count_values(rows, mask_column), mask_column, split, mask_values, ignore_index)
    stored, ignore_index = ignore_index, ignored_in_classes(mask_values, ignore_index)

    def view(mask: torch.Tensor) -> torch.Tensor:
        return preprocessing.mask(map_values(mask, mask_values, stored))

    def read(rows: "Dataset", split: str) -> tuple[dict[str, Features], list[tuple[int, torch.Tensor]]]:
        """Return the features, and for every image with a mask its index in them and the labels of its patches [P]."""
        features = bench.extract(rows, image_column, "patches", f"patch-knn: {split} images")
        labelled = [
            (place, patch_labels(mask[None], patch_size, ignore_index)[0])
            for place, mask in read_masks(rows, features["model"].kept, image_column, mask_column, view)
        ]
        if not any((labels != ignore_index).any() for _, labels in labelled):
            raise Refused(
                f"mask_column: none of the {len(rows)} {split} rows has a patch that can be decoded and counts"
            )
        classes = torch.cat([labels for _, labels in labelled]).unique().tolist()
        if len(set(classes) - {ignore_index}) < 2:
            raise Refused(
                f"mask_column: the majority of pixels has one class in every patch of {split}, and a constant answer "
                "scores 1, accepted: patches of at least two classes"
            )
        return features, labelled

    generator = torch.Generator().manual_seed(bench.seed)
    features, labelled = read(train, "train")
    num_train, part_labels = len(labelled), []
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in features}
    for place, labels in labelled:
        chosen = torch.rand(labels.shape, generator=generator).topk(per_image).indices
        chosen = chosen[labels[chosen] != ignore_index]
        for name in features:
            parts[name].append(features[name][place][chosen])
        part_labels.append(labels[chosen])
    bank_labels = torch.cat(part_labels)
    num_bank_classes = int(bank_labels.max()) + 1
    banks = {
        name: NeighbourBank(torch.cat(parts.pop(name)).to(bench.device), bank_labels, num_bank_classes)
        for name in features
    }
    features, labelled = read(test, "test")
    num_test, truth = len(labelled), []
    predicted: dict[str, dict[int, list[torch.Tensor]]] = {name: {k: [] for k in ks} for name in features}
    for start in range(0, num_test, bench.batch_size):
        part = labelled[start : start + bench.batch_size]
        for name in features:
            queries = torch.cat([features[name][place][labels != ignore_index] for place, labels in part])
            for k, predictions in banks[name].classify(queries.to(bench.device), ks).items():
                predicted[name][k].append(predictions.cpu())
        truth += [labels[labels != ignore_index] for _, labels in part]
    sizes, truth = [len(labels) for labels in truth], torch.cat(truth)
    num_classes = max(num_bank_classes, int(truth.max()) + 1)
    confusions = {
        name: {k: confusion_matrix(torch.cat(predicted[name][k]), truth, num_classes) for k in ks} for name in features
    }
    counts = {k: _image_counts(torch.cat(predicted["model"][k]), truth, sizes, num_classes) for k in ks}
    some = confusions["model"][ks[0]]
    metrics = []
    for title, metric, of_counts, chance in (
        ("mIoU", _mean_iou, mean_iou, chance_iou(some).nanmean().item()),
        ("patch accuracy", _accuracy, pixel_accuracy, chance_accuracy(some)),
    ):
        for k in ks:
            values = {name: metric(confusions[name][k]) for name in features}
            interval = with_interval(bootstrap_interval(counts[k], of_counts, bench.seed))
            metrics.append({"metric": title, "k": k, **values, "chance": chance, **interval})
    by_class = {name: intersection_over_union(confusions[name][ks[0]]) for name in features}
    present = confusions["model"][ks[0]].sum(1)
    return Result(
        task="patch-knn",
        protocol={
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
            "ignore_index": stored,
            "mask_values": list(mask_values),
            "preprocessing": asdict(bench.preprocessing),
            "seed": bench.seed,
            "raw_pixels": "the pixels of the patch, normalised as the network's input, flattened",
            "chance": CHANCE.replace("pixel", "patch"),
        },
        skipped_images={"train": len(train) - num_train, "test": len(test) - num_test},
        metrics=metrics,
        details={
            "per_class": [
                {"class": index, "patches": int(count), **{name: by_class[name][index].item() for name in features}}
                for index, count in enumerate(present)
                if count
            ],
        },
    )


def _image_counts(
    predictions: torch.Tensor, truth: torch.Tensor, sizes: Sequence[int], num_classes: int
) -> np.ndarray:
    """Return `confusion_counts` [N,3K] of each image; predictions and truth are those of all images' patches [Q]."""
    pairs = zip(predictions.split(list(sizes)), truth.split(list(sizes)), strict=True)
    return np.stack([confusion_counts(confusion_matrix(*pair, num_classes)) for pair in pairs])


def _mean_iou(confusion: torch.Tensor) -> float:
    return intersection_over_union(confusion).nanmean().item()


def _accuracy(confusion: torch.Tensor) -> float:
    return (confusion.diagonal().sum() / confusion.sum()).item()
