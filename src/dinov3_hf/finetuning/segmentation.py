"""Fine-tuning for semantic segmentation."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..data.masks import (
    IGNORE_INDEX,
    check_classes,
    check_mask_column,
    check_mask_fits,
    check_mask_values,
    ignored_in_classes,
    map_values,
    read_mask,
    resize_mask,
)
from ..data.pixels import BadImage, check_turned_alike, decode_image, read_size
from ..errors import Refused
from ..evaluation.intervals import bootstrap_interval, mean_iou, pixel_accuracy, with_interval
from ..evaluation.iou import (
    chance_accuracy,
    chance_iou,
    confusion_counts,
    confusion_matrix,
    intersection_over_union,
)
from ..models.modeling_dinov3 import Dinov3Model
from ..terminal import progress_bar
from .arguments import DataArguments, FinetuneRecipe
from .examples import SMALLEST_CROP, View
from .heads import build_dense, class_scores, mask_targets, upsample_to


if TYPE_CHECKING:
    from datasets import Dataset


class Segmentation:
    """Semantic segmentation; mIoU over the classes of the test masks, and pixel accuracy."""

    def __init__(self, recipe: FinetuneRecipe, train: "Dataset", test: "Dataset", view: View, image_column: str):
        data = recipe.data
        self.view, self.image_column, self.mask_column = view, image_column, data.mask_column
        self.head, self.augment = recipe.task.head, data.augment
        check_mask_values(data.mask_values, data.ignore_index)
        self.mask_values = data.mask_values
        self.stored_ignore = IGNORE_INDEX if data.ignore_index is None else data.ignore_index
        self.ignore_index = ignored_in_classes(self.mask_values, self.stored_ignore)
        if self.head not in (None, "upernet", "mask2former"):
            # EoMT implements the blocks itself: there is no backbone to freeze, adapt or save.
            raise Refused(f"head: got {self.head!r}, accepted for segmentation here: upernet, mask2former")
        pixels = {name: self._count(rows, name, data) for name, rows in (("train", train), ("test", test))}
        largest = max(max(of_split, default=0) for of_split in pixels.values())
        self.names = list(data.class_names) or list(map(str, self.mask_values or range(largest + 1)))
        self.crop = v2.Compose(
            [
                v2.RandomResizedCrop(view.size, (SMALLEST_CROP, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        )

    def _count(self, rows: "Dataset", name: str, data: DataArguments) -> Counter[int]:
        """Count the pixels of each class in the masks of a split; raises `Refused` for masks that cannot be used."""
        check_mask_column(rows, data.mask_column)
        stored: Counter[int] = Counter()
        counts: Counter[int] = Counter()
        masks = rows.select_columns([self.image_column, data.mask_column])
        for row, values in enumerate(progress_bar(masks, desc=f"masks of {name}", unit="image")):
            mask = self._stored(values)
            if mask is None:
                continue
            try:
                check_mask_fits(mask, read_size(values[self.image_column]), row)
                check_turned_alike(values[self.image_column], values[data.mask_column], row, "mask_column")
            except BadImage:
                continue
            stored.update(_pixels(mask))
            labels = map_values(mask, self.mask_values, self.stored_ignore)
            labels = labels[labels != self.ignore_index]
            if not len(labels):
                continue
            if labels.min() < 0 or (data.class_names and labels.max() >= len(data.class_names)):
                wrong = labels.min() if labels.min() < 0 else labels.max()
                top = f"up to {len(data.class_names) - 1} (class_names)" if data.class_names else "from 0"
                raise Refused(
                    f"mask_column: row {row} of {name} has a pixel of class {wrong}, accepted: {top}, and "
                    f"ignore_index ({self.stored_ignore})"
                )
            counts.update(_pixels(labels))
        check_classes(stored, data.mask_column, name, self.mask_values, self.stored_ignore)
        return counts

    def _stored(self, row: dict) -> torch.Tensor | None:
        """Return the mask [H,W] of a row as it is stored, `None` if it cannot be read."""
        try:
            return read_mask(row[self.mask_column] or {"path": ""})
        except OSError:
            return None

    def _labels(self, row: dict) -> torch.Tensor | None:
        """Return the classes [H,W] of a row, `None` if its mask cannot be read."""
        mask = self._stored(row)
        return None if mask is None else map_values(mask, self.mask_values, self.stored_ignore)

    def build(self, backbone: Dinov3Model, name: str, fields: dict) -> PreTrainedModel:
        """Return a segmentation head on the backbone; `fields` go to the head's configuration."""
        if self.head != "mask2former":
            # Without the auxiliary head, because `loss` below only uses the main logits.
            fields = {"use_auxiliary_head": False, "loss_ignore_index": self.ignore_index} | fields
        return build_dense("segmentation", backbone, name, self.head, self.names, fields)

    def targets(self, labels: torch.Tensor) -> dict:
        """Return the arguments with which the model computes its loss: Mask2Former's masks and classes, else none."""
        return mask_targets(labels, self.ignore_index) if self.head == "mask2former" else {}

    def _scores(self, outputs: ModelOutput, labels: torch.Tensor) -> torch.Tensor:
        """Return the class scores [B,K,S,S] of all pixels."""
        return upsample_to(class_scores(outputs) if self.head == "mask2former" else outputs.logits, labels)

    def read(self, row: dict, train: bool) -> dict:
        """Return the pixel values [3,S,S] and the class indices [S,S] of a row; raises `BadImage`."""
        image, labels = decode_image(row[self.image_column]), self._labels(row)
        if labels is None:
            raise BadImage("its mask cannot be read")
        labels = resize_mask(labels, tuple(image.shape[1:]))
        if train and self.augment:
            image, labels = self.crop(image, tv_tensors.Mask(labels))
        labels = resize_mask(torch.as_tensor(labels), (self.view.size, self.view.size))
        return {"pixel_values": self.view.image(image), "labels": labels}

    def loss(self, outputs: ModelOutput, labels: torch.Tensor) -> torch.Tensor:
        """Return Mask2Former's own loss, or the cross-entropy of the logits, upsampled to the labels [B,S,S].

        The cross-entropy is the mean over all pixels that are not ignored.
        """
        if self.head == "mask2former":
            return outputs.loss
        logits = self._scores(outputs, labels)
        counted = (labels != self.ignore_index).sum().clamp(min=1)
        return nn.functional.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="sum") / counted

    def statistics(self, outputs: ModelOutput, labels: torch.Tensor) -> torch.Tensor:
        """Return the flattened confusion matrix of each image [B,K*K]; its rows are the true classes."""
        predicted, matrices = self._scores(outputs, labels).argmax(1), []
        for guess, truth in zip(predicted, labels, strict=True):
            counted = truth != self.ignore_index
            matrices.append(confusion_matrix(guess[counted], truth[counted], len(self.names)).flatten())
        return torch.stack(matrices)

    def metrics(self, statistics: torch.Tensor) -> list[dict]:
        """Return mIoU and pixel accuracy from the statistics [N,K*K] of all test images."""
        of_images = statistics.double().view(len(statistics), len(self.names), -1)
        confusion = of_images.sum(0)
        counts = np.stack([confusion_counts(matrix) for matrix in of_images])
        lines = (
            ("mIoU", intersection_over_union(confusion), chance_iou(confusion), mean_iou),
            (
                "pixel accuracy",
                pixel_accuracy(counts.sum(0)[None])[0],
                chance_accuracy(confusion),
                pixel_accuracy,
            ),
        )
        return [
            {"metric": name, "model": torch.as_tensor(model).nanmean().item()}
            | {"chance": torch.as_tensor(chance).nanmean().item()}
            | with_interval(bootstrap_interval(counts, metric))
            for name, model, chance, metric in lines
        ]


def _pixels(mask: torch.Tensor) -> dict[int, int]:
    """Return the number of pixels of each value in a mask."""
    values, pixels = mask.unique(return_counts=True)
    return dict(zip(values.tolist(), pixels.tolist(), strict=True))
