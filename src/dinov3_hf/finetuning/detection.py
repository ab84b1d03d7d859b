"""Fine-tuning for object detection."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.ops import box_convert, box_iou
from torchvision.transforms import v2
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..data.boxes import CATEGORY_NAMES, boxes_of_masks, declared_names
from ..data.columns import check_column
from ..data.masks import read_mask
from ..data.pixels import BadImage, decode_image, read_size
from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3Model
from ..terminal import progress_bar
from .arguments import FinetuneRecipe
from .examples import View
from .heads import build_dense


if TYPE_CHECKING:
    from datasets import Dataset


MIN_IOU = 0.5


class Detection:
    """Object detection with a set-prediction head (DETR family); average precision at an IoU of 0.5 (AP@0.5)."""

    def __init__(self, recipe: FinetuneRecipe, train: "Dataset", test: "Dataset", view: View, image_column: str):
        data = recipe.data
        self.view, self.image_column, self.column, self.head = (
            view,
            image_column,
            data.objects_column,
            recipe.task.head,
        )
        # Rendered scenes have instance masks instead of boxes; the boxes are computed from them.
        self.from_masks = data.objects_column not in train.column_names and "instances" in train.column_names
        self.names, declared, largest = list(data.class_names), declared_names(train, self.column), -1
        self.names = self.names or declared
        if self.from_masks:
            self.names = self.names or list(train.features["label"].names)
        columns = [image_column, *(("instances", "mask") if self.from_masks else (self.column,))]
        for name, rows in (("train", train), ("test", test)):
            for column in columns:
                check_column(rows, column, "objects_column")
            for index, row in enumerate(
                progress_bar(rows.select_columns(columns), desc=f"objects of {name}", unit="image")
            ):
                try:
                    height, width = read_size(row[image_column])
                    boxes, classes = self.objects(row)
                except (BadImage, OSError):
                    continue
                self._check(boxes, classes, height, width, f"row {index} of {name}")
                largest = max([largest, *classes])
        if largest < 0:
            raise Refused(f"objects_column: got {self.column!r} without an object, accepted: at least one")
        self.names = self.names or [str(index) for index in range(largest + 1)]
        self.flip = v2.RandomHorizontalFlip(0.5 if data.augment else 0.0)

    def _check(self, boxes: torch.Tensor, classes: list[int], height: int, width: int, where: str) -> None:
        for box, number in zip(boxes.tolist(), classes, strict=True):
            x, y, w, h = box
            # Half a pixel is allowed for rounding.
            if w <= 0 or h <= 0 or x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
                raise Refused(
                    f"objects_column: {where} has the box {[round(value, 2) for value in box]} in an image of "
                    f"{width}x{height}, accepted: [x, y, width, height] in pixels, inside the image"
                )
            if not 0 <= number < (len(self.names) or number + 1):
                raise Refused(
                    f"objects_column: {where} has the category {number}, accepted: 0 to {len(self.names) - 1}, those "
                    "of the class list"
                )

    def objects(self, row: dict) -> tuple[torch.Tensor, list[int]]:
        """Return the boxes [n,4] of a row (x, y, width, height in pixels) and their n class indices."""
        if self.from_masks:
            return boxes_of_masks(read_mask(row["instances"]), read_mask(row["mask"]))
        objects = row[self.column]
        if isinstance(objects, list):
            objects = {name: [item[name] for item in objects] for name in (objects[0] if objects else ())}
        classes = next((objects[name] for name in CATEGORY_NAMES if name in objects), None)
        boxes = objects.get("bbox", objects.get("boxes"))
        if objects and (classes is None or boxes is None or len(classes) != len(boxes)):
            raise Refused(
                f"objects_column: got {self.column!r} with {', '.join(objects)}, "
                "accepted: as many `category` as `bbox`"
            )
        return torch.tensor(boxes or [], dtype=torch.float).view(-1, 4), list(classes or [])

    def build(self, backbone: Dinov3Model, name: str, fields: dict) -> PreTrainedModel:
        """Return a detection head on the backbone; `fields` go to the head's configuration."""
        return build_dense("detection", backbone, name, self.head, self.names, fields)

    def read(self, row: dict, train: bool) -> dict:
        """Return the pixel values [3,S,S], classes [n] and boxes [n,4] of a row.

        Boxes are centre x, centre y, width and height, relative to the sides of the image (0..1).
        """
        image = decode_image(row[self.image_column])
        boxes, classes = self.objects(row)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=image.shape[1:])
        if train:
            image, boxes = self.flip(image, boxes)
        height, width = image.shape[1:]
        centred = box_convert(torch.as_tensor(boxes), "xywh", "cxcywh") / torch.tensor([width, height] * 2)
        labels = {"class_labels": torch.tensor(classes, dtype=torch.long), "boxes": centred.clamp(0, 1)}
        return {"pixel_values": self.view.image(image), "labels": labels}

    def targets(self, labels: list[dict]) -> dict:
        """Return the arguments with which the model computes its loss."""
        return {"labels": labels}

    def loss(self, outputs: ModelOutput, labels: list[dict]) -> torch.Tensor:
        """Return the model's own loss: bipartite matching, then classification, box and generalised IoU losses."""
        return outputs.loss

    def statistics(self, outputs: ModelOutput, labels: list[dict]) -> torch.Tensor:
        """Return one row per image [B,3Q+K], for Q queries and K classes.

        A row holds the queries' scores, their classes, whether they are hits, and the number of objects of each class.
        """
        logits = outputs.logits.float()
        # DETR has a class for "no object"; its successors score each class on its own.
        has_none = logits.shape[-1] > len(self.names)
        probabilities = logits.softmax(-1)[..., :-1] if has_none else logits.sigmoid()
        rows = []
        for scores, boxes, truth in zip(probabilities, outputs.pred_boxes.float(), labels, strict=True):
            best, classes = scores.max(-1)
            hits = match(best, classes, boxes, truth["class_labels"], truth["boxes"])
            counts = torch.bincount(truth["class_labels"], minlength=len(self.names))
            rows.append(torch.cat([best, classes.float(), hits.float(), counts.float()]))
        return torch.stack(rows)

    def metrics(self, statistics: torch.Tensor) -> list[dict]:
        """Return the average precision, averaged over classes, from the statistics [N,3Q+K] of all test images."""
        queries = (statistics.shape[1] - len(self.names)) // 3
        scores, classes, hits, counts = statistics.split([queries, queries, queries, len(self.names)], dim=1)
        precisions = [
            average_precision(scores[classes == index], hits[classes == index], int(total))
            for index, total in enumerate(counts.sum(0))
            if total
        ]
        return [{"metric": "AP@0.5", "model": float(np.mean(precisions)) if precisions else float("nan")}]


def match(
    scores: torch.Tensor,
    classes: torch.Tensor,
    boxes: torch.Tensor,
    true_classes: torch.Tensor,
    true_boxes: torch.Tensor,
) -> torch.Tensor:
    """Return which of Q predictions are hits (bool [Q]).

    From the highest score [Q] down, each prediction is compared with the objects of its class that are not matched
    yet. If the largest IoU is at least 0.5, it is a hit and that object is matched. Boxes [Q,4] and [n,4] are centre
    x, centre y, width, height.
    """
    hits = torch.zeros_like(scores, dtype=torch.bool)
    if not len(true_boxes):
        return hits
    corners = [box_convert(part, "cxcywh", "xyxy") for part in (boxes, true_boxes)]
    overlap = box_iou(*corners) * (classes[:, None] == true_classes)
    for query in scores.argsort(descending=True):
        best, place = overlap[query].max(0)
        if best >= MIN_IOU:
            hits[query] = True
            overlap[:, place] = 0
    return hits


def average_precision(scores: torch.Tensor, hits: torch.Tensor, total: int) -> float:
    """Return the area under the precision-recall curve of predictions [n] for `total` objects.

    All points of the curve are used, as in PASCAL VOC from 2010 on.
    """
    hits = hits[scores.argsort(descending=True, stable=True)].double().numpy()
    true_positives = np.cumsum(hits)
    precision = true_positives / np.arange(1, len(hits) + 1)
    # The best precision at this recall or any higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * hits).sum() / total)
