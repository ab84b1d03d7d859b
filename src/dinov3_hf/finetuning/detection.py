"""What fine-tuning learns of objects: boxes and their classes."""

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.ops import box_convert, box_iou
from torchvision.transforms import v2

from ..data.boxes import CATEGORY_NAMES, boxes_of_masks, declared_names
from ..data.columns import check_column
from ..data.masks import read_mask
from ..data.pixels import BadImage, decode_image, read_size
from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3Model
from .examples import View, progress
from .heads import build_dense


MIN_IOU = 0.5


class Detection:
    """Boxes of objects and their classes by a set-prediction head (DETR); average precision at an IoU of 0.5."""

    def __init__(self, recipe, train, test, view: View, image_column: str):
        data = recipe.data
        self.view, self.image_column, self.column, self.head = (
            view,
            image_column,
            data.objects_column,
            recipe.task.head,
        )
        # Rendered scenes name the objects' pixels; boxes follow from them.
        self.from_masks = data.objects_column not in train.column_names and "instances" in train.column_names
        self.names, declared, largest = list(data.class_names), declared_names(train, self.column), -1
        self.names = self.names or declared
        if self.from_masks:
            self.names = self.names or list(train.features["label"].names)
        columns = [image_column, *(("instances", "mask") if self.from_masks else (self.column,))]
        for name, rows in (("train", train), ("test", test)):
            for column in columns:
                check_column(rows, column, "objects_column")
            for index, row in progress(enumerate(rows.select_columns(columns)), f"objects of {name}"):
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
            # Half a pixel of rounding is forgiven.
            if w <= 0 or h <= 0 or x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
                raise Refused(
                    f"objects_column: {where} has the box {[round(value, 2) for value in box]} in an image of "
                    f"{width}x{height}, accepted: [x, y, width, height] in pixels, inside the image"
                )
            if not 0 <= number < (len(self.names) or number + 1):
                raise Refused(
                    f"objects_column: {where} has the category {number}, accepted: 0 to {len(self.names) - 1}, those of "
                    "the class list"
                )

    def objects(self, row: dict) -> tuple[torch.Tensor, list[int]]:
        """Return the boxes [n,4] of a row as x, y, width, height in pixels, and their classes."""
        if self.from_masks:
            return boxes_of_masks(read_mask(row["instances"]), read_mask(row["mask"]))
        objects = row[self.column]
        if isinstance(objects, list):
            objects = {name: [item[name] for item in objects] for name in (objects[0] if objects else ())}
        classes = next((objects[name] for name in CATEGORY_NAMES if name in objects), None)
        boxes = objects.get("bbox", objects.get("boxes"))
        if objects and (classes is None or boxes is None or len(classes) != len(boxes)):
            raise Refused(
                f"objects_column: got {self.column!r} with {', '.join(objects)}, accepted: as many `category` as `bbox`"
            )
        return torch.tensor(boxes or [], dtype=torch.float).view(-1, 4), list(classes or [])

    def build(self, backbone: Dinov3Model, name: str, fields: dict):
        return build_dense("detection", backbone, name, self.head, self.names, fields)

    def read(self, row: dict, train: bool) -> dict:
        """Return pixel values [3,S,S], and classes [n] and boxes [n,4] (centre and size, of 1) of a row."""
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
        """Return what the head's own loss takes."""
        return {"labels": labels}

    def loss(self, outputs, labels: list[dict]) -> torch.Tensor:
        """The head's own: bipartite matching, then classes, boxes and generalised IoU."""
        return outputs.loss

    def statistics(self, outputs, labels: list[dict]) -> torch.Tensor:
        """Return score, class and correctness of each query and the objects of each class, an image a row [B,3Q+K]."""
        logits = outputs.logits.float()
        # DETR has a class for no object; its successors score each class by itself.
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
        """Return the mean over classes of the average precision of figures [N,3Q+K]."""
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
    """Say which predictions [Q] find an object: the best first, each the free object it overlaps most, at 0.5 or more.

    Boxes are [Q,4] and [n,4], centre and size.
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
    """Return the area under the precision over recall of predictions [n] for `total` objects (all points, as VOC 2010)."""
    hits = hits[scores.argsort(descending=True, stable=True)].double().numpy()
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    # The best precision at this recall or any higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * hits).sum() / total)
