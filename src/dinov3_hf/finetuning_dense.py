"""What fine-tuning learns of pixels: classes and depths."""

import math

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .data.depths import check_depth_column, in_metres, read_depth
from .data.masks import check_mask_column, check_mask_fits, read_mask, resize_mask
from .data.pixels import BadImage, decode_image, read_size
from .dense_heads import build_head, class_scores, mask_targets
from .evaluation.depth import depth_errors, sigma_loss
from .evaluation.iou import confusion_matrix, intersection_over_union
from .finetuning_tasks import SMALLEST_CROP, View
from .models.modeling_dinov3 import Dinov3Model


# Depths below it (metres) do not count, and no prediction is taken for less.
MIN_DEPTH = 0.001


def progress(items, text: str):
    """Return the items with a progress bar."""
    from tqdm import tqdm

    return tqdm(items, desc=text, disable=None)


def build_dense(task: str, backbone: Dinov3Model, name: str, head: str | None, names: list[str] | None, fields: dict):
    """Return a head of transformers on the backbone's weights; `fields` are its own configuration's."""
    model = build_head(backbone, task, head, None if names is None else len(names), **fields)
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {label: index for index, label in enumerate(names)}
    model.name_or_path = name
    return model


class Segmentation:
    """Classes of pixels; mIoU over the classes of the test masks."""

    def __init__(self, recipe, train, test, view: View, image_column: str):
        data = recipe.data
        self.view, self.image_column, self.mask_column = view, image_column, data.mask_column
        self.head, self.ignore_index, self.augment = recipe.task.head, data.ignore_index, data.augment
        if self.head not in (None, "upernet", "mask2former"):
            # EoMT has blocks of its own: nothing to freeze, adapt or save apart.
            raise ValueError(f"head: got {self.head!r}, accepted for segmentation here: upernet, mask2former")
        largest, counts = 0, torch.zeros(1, dtype=torch.long)
        for name, rows in (("train", train), ("test", test)):
            check_mask_column(rows, data.mask_column)
            for row, values in progress(
                enumerate(rows.select_columns([image_column, data.mask_column])), f"masks of {name}"
            ):
                labels = self._labels(values)
                if labels is None:
                    continue
                try:
                    check_mask_fits(labels, read_size(values[image_column]), row)
                except BadImage:
                    continue
                labels = labels[labels != data.ignore_index]
                if not len(labels):
                    continue
                if labels.min() < 0 or (data.class_names and labels.max() >= len(data.class_names)):
                    wrong = labels.min() if labels.min() < 0 else labels.max()
                    top = f"up to {len(data.class_names) - 1} (class_names)" if data.class_names else "from 0"
                    raise ValueError(
                        f"mask_column: row {row} of {name} has a pixel of class {wrong}, accepted: {top}, and "
                        f"ignore_index ({data.ignore_index})"
                    )
                largest = max(largest, int(labels.max()))
                if name == "train":
                    found = torch.bincount(labels, minlength=len(counts))
                    counts = found + nn.functional.pad(counts, (0, len(found) - len(counts)))
        self.names = list(data.class_names) or [str(index) for index in range(largest + 1)]
        self.most_frequent = int(counts.argmax())
        self.crop = v2.Compose(
            [
                v2.RandomResizedCrop(view.size, (SMALLEST_CROP, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        )

    def _labels(self, row: dict) -> torch.Tensor | None:
        """Return the mask [H,W] of a row, None where it cannot be read."""
        try:
            return read_mask(row[self.mask_column] or {"path": ""})
        except OSError:
            return None

    def build(self, backbone: Dinov3Model, name: str, fields: dict):
        if self.head != "mask2former":
            # Without the auxiliary head: `loss` below sees the main logits only.
            fields = {"use_auxiliary_head": False, "loss_ignore_index": self.ignore_index} | fields
        return build_dense("segmentation", backbone, name, self.head, self.names, fields)

    def targets(self, labels: torch.Tensor) -> dict:
        """Return what the head's own loss takes, if it has one: Mask2Former's takes the mask of each class."""
        return mask_targets(labels, self.ignore_index) if self.head == "mask2former" else {}

    def _scores(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """Return the scores [B,K,S,S] of pixels for classes."""
        return _upsample(class_scores(outputs) if self.head == "mask2former" else outputs.logits, labels)

    def read(self, row: dict, train: bool) -> dict:
        """Return pixel values [3,S,S] and classes [S,S] of a row; raises BadImage."""
        image, labels = decode_image(row[self.image_column]), self._labels(row)
        if labels is None:
            raise BadImage("its mask cannot be read")
        labels = resize_mask(labels, tuple(image.shape[1:]))
        if train and self.augment:
            image, labels = self.crop(image, tv_tensors.Mask(labels))
        labels = resize_mask(torch.as_tensor(labels), (self.view.size, self.view.size))
        return {"pixel_values": self.view.image(image), "labels": labels}

    def loss(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """Mask2Former's own; else cross-entropy of logits, upsampled to the labels [B,S,S], over the pixels that count."""
        if self.head == "mask2former":
            return outputs.loss
        logits = self._scores(outputs, labels)
        counted = (labels != self.ignore_index).sum().clamp(min=1)
        return nn.functional.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="sum") / counted

    def figures(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """Return the confusion of each image [B,K*K], rows are labels."""
        predicted, found = self._scores(outputs, labels).argmax(1), []
        for guess, truth in zip(predicted, labels, strict=True):
            counted = truth != self.ignore_index
            found.append(confusion_matrix(guess[counted], truth[counted], len(self.names)).flatten())
        return torch.stack(found)

    def measures(self, figures: torch.Tensor) -> list[dict]:
        """Return mIoU and pixel accuracy of figures [N,K*K]."""
        confusion = figures.double().sum(0).view(len(self.names), -1)
        constant = torch.zeros_like(confusion)
        constant[:, self.most_frequent] = confusion.sum(1)
        values = [
            (intersection_over_union(found).nanmean().item(), (found.diagonal().sum() / found.sum()).item())
            for found in (confusion, constant)
        ]
        names = ("mIoU", "pixel accuracy")
        return [{"measure": n, "model": m, "chance": c} for n, m, c in zip(names, *values, strict=True)]


class Depth:
    """Depths of pixels in metres; RMSE, mean absolute relative error, delta1."""

    def __init__(self, recipe, train, test, view: View, image_column: str):
        data = recipe.data
        self.view, self.image_column, self.column = view, image_column, data.depth_column
        self.head, self.unit, self.max_depth = recipe.task.head, data.depth_unit, data.max_depth
        for rows in (train, test):
            check_depth_column(rows, data.depth_column)
        medians = []
        for row in progress(train.select_columns([data.depth_column]), "depths of train"):
            depths = self._depths(row)
            if depths is not None and (depths > 0).any():
                medians.append(depths[depths > 0].median())
        if not medians:
            raise ValueError(
                f"depth_column: got {self.column!r} without a depth in range, accepted: depths up to {self.max_depth} m"
            )
        self.constant = torch.stack(medians).median()
        # No crop: what is enlarged would seem nearer than it is.
        self.crop = v2.RandomHorizontalFlip(0.5 if data.augment else 0.0)

    def _depths(self, row: dict) -> torch.Tensor | None:
        """Return the metres [H,W] of a row, 0 where unknown, None where they cannot be read."""
        try:
            stored = read_depth(row[self.column] or {"path": ""}, self.unit, MIN_DEPTH, self.max_depth)
        except OSError:
            return None
        return torch.from_numpy(in_metres(stored, self.unit)).float()

    def build(self, backbone: Dinov3Model, name: str, fields: dict):
        model = build_dense("depth", backbone, name, self.head, None, fields)
        last = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.out_channels == 1]
        if last and type(model).__name__ == "DPTForDepthEstimation":
            # It ends in a ReLU, and would take long from its zero to the metres of a room, if it ever left it.
            nn.init.constant_(last[-1].bias, float(self.constant))
        return model

    def read(self, row: dict, train: bool) -> dict:
        """Return pixel values [3,S,S] and metres [S,S] of a row; raises BadImage."""
        image, depths = decode_image(row[self.image_column]), self._depths(row)
        if depths is None:
            raise BadImage("its depths cannot be read")
        if train:
            image, depths = self.crop(image, tv_tensors.Mask(depths))
        size = [self.view.size, self.view.size]
        depths = F.resize(torch.as_tensor(depths)[None], size, v2.InterpolationMode.NEAREST_EXACT)[0]
        return {"pixel_values": self.view.image(image), "labels": depths}

    def _predicted(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        return _upsample(outputs.predicted_depth[:, None], labels)[:, 0].clamp(MIN_DEPTH)

    def targets(self, labels: torch.Tensor) -> dict:
        """Return nothing: transformers' depth heads have no loss of their own."""
        return {}

    def loss(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """Sigma loss of the linear probe and, so that depths that start at 0 move too, mean absolute error in metres."""
        valid = labels > 0
        predicted = _upsample(outputs.predicted_depth[:, None], labels)[:, 0]
        absolute = torch.where(valid, predicted - labels, 0).abs().sum() / valid.sum().clamp(min=1)
        return sigma_loss(predicted.clamp(MIN_DEPTH), labels) + absolute

    def figures(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """Return RMSE, error and delta1 of each image, then those of a constant [B,6]; NaN for images without depth."""
        predicted = self._predicted(outputs, labels)
        return torch.cat(
            [_depth_errors(p, labels) for p in (predicted, torch.full_like(labels, self.constant))], dim=1
        )

    def measures(self, figures: torch.Tensor) -> list[dict]:
        """Return the means over images of figures [N,6]."""
        found, constant = figures.double().mean(0).view(2, 3).tolist()
        names = (("RMSE", True), ("ARel", True), ("delta1", False))
        return [
            {"measure": name, **({"lower_is_better": True} if lower else {}), "model": model, "chance": chance}
            for (name, lower), model, chance in zip(names, found, constant, strict=True)
        ]


def _depth_errors(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return RMSE, mean absolute relative error and delta1 of each depth map [B,S,S] over its known pixels: [B,3]."""
    pairs = zip(predicted.float().cpu(), truth.float().cpu(), strict=True)
    known = [(one[of > 0].numpy(), of[of > 0].numpy()) for one, of in pairs]
    errors = [depth_errors(*pair) if pair[1].size else (math.nan,) * 3 for pair in known]
    return torch.tensor(errors, dtype=torch.float32, device=predicted.device)


def _upsample(maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Resize maps [B,C,h,w] to the height and width of the labels, bilinearly."""
    return nn.functional.interpolate(maps.float(), labels.shape[-2:], mode="bilinear")
