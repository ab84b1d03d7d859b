"""Fine-tuning for depth estimation."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import DepthEstimatorOutput

from ..data.depths import check_depth_column, in_metres, read_depth
from ..data.masks import check_mask_fits
from ..data.pixels import BadImage, check_turned_alike, decode_image, read_size
from ..errors import Refused
from ..evaluation.depth import best_constants, constant_depths, constant_errors, depth_errors, sigma_loss
from ..evaluation.intervals import mean_interval, with_interval
from ..models.modeling_dinov3 import Dinov3Model
from ..terminal import progress_bar
from .arguments import FinetuneRecipe
from .examples import View
from .heads import build_dense, upsample_to


if TYPE_CHECKING:
    from datasets import Dataset


# Smaller true depths (metres) are ignored, and predictions are clamped to at least this.
MIN_DEPTH = 0.001


class Depth:
    """Depth of every pixel in metres; metrics: RMSE, mean absolute relative error (ARel) and delta1."""

    def __init__(self, recipe: FinetuneRecipe, train: "Dataset", test: "Dataset", view: View, image_column: str):
        data = recipe.data
        self.view, self.image_column, self.column = view, image_column, data.depth_column
        self.head, self.unit, self.max_depth = recipe.task.head, data.depth_unit, data.max_depth
        for rows in (train, test):
            check_depth_column(rows, data.depth_column)
        medians = []
        rows = train.select_columns([image_column, data.depth_column])
        for number, row in enumerate(progress_bar(rows, desc="depths of train", unit="image")):
            depths = self._depths(row)
            if depths is None:
                continue
            try:
                check_mask_fits(depths, read_size(row[image_column]), number, "depth_column")
                check_turned_alike(row[image_column], row[data.depth_column], number, "depth_column")
            except BadImage:
                continue
            if (depths > 0).any():
                medians.append(depths[depths > 0].median())
        if not medians:
            raise Refused(
                f"depth_column: got {self.column!r} without a depth in range, "
                f"accepted: depths up to {self.max_depth} m"
            )
        self.constant = torch.stack(medians).median()
        self.constants = constant_depths(MIN_DEPTH, self.max_depth, 64)
        # No random crops: resizing them would make objects look nearer than their true depth.
        self.crop = v2.RandomHorizontalFlip(0.5 if data.augment else 0.0)

    def _depths(self, row: dict) -> torch.Tensor | None:
        """Return the depths [H,W] of a row in metres, 0 where unknown; `None` if they cannot be read."""
        try:
            stored = read_depth(row[self.column] or {"path": ""}, self.unit, MIN_DEPTH, self.max_depth)
        except OSError:
            return None
        return torch.from_numpy(in_metres(stored, self.unit)).float()

    def build(self, backbone: Dinov3Model, name: str, fields: dict) -> PreTrainedModel:
        """Return a depth head on the backbone; `fields` go to the head's configuration."""
        model = build_dense("depth", backbone, name, self.head, None, fields)
        last = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.out_channels == 1]
        if last and type(model).__name__ == "DPTForDepthEstimation":
            # It ends in a ReLU: from outputs of 0 it would be slow to reach the depths of a room, or stay there.
            nn.init.constant_(last[-1].bias, float(self.constant))
        return model

    def read(self, row: dict, train: bool) -> dict:
        """Return the pixel values [3,S,S] and the depths [S,S] in metres of a row; raises `BadImage`."""
        image, depths = decode_image(row[self.image_column]), self._depths(row)
        if depths is None:
            raise BadImage("its depths cannot be read")
        if train:
            image, depths = self.crop(image, tv_tensors.Mask(depths))
        size = [self.view.size, self.view.size]
        depths = F.resize(torch.as_tensor(depths)[None], size, v2.InterpolationMode.NEAREST_EXACT)[0]
        return {"pixel_values": self.view.image(image), "labels": depths}

    def _predicted(self, outputs: DepthEstimatorOutput, labels: torch.Tensor) -> torch.Tensor:
        return upsample_to(outputs.predicted_depth[:, None], labels)[:, 0].clamp(MIN_DEPTH)

    def targets(self, labels: torch.Tensor) -> dict:
        """Return no arguments: the depth heads of transformers do not compute a loss."""
        return {}

    def loss(self, outputs: DepthEstimatorOutput, labels: torch.Tensor) -> torch.Tensor:
        """Return the sigma loss of the linear probe plus the mean absolute error in metres.

        The sigma loss has no gradient for predictions that are clamped to MIN_DEPTH; the absolute error has one.
        """
        valid = labels > 0
        predicted = upsample_to(outputs.predicted_depth[:, None], labels)[:, 0]
        absolute = torch.where(valid, predicted - labels, 0).abs().sum() / valid.sum().clamp(min=1)
        return sigma_loss(predicted.clamp(MIN_DEPTH), labels) + absolute

    def statistics(self, outputs: DepthEstimatorOutput, labels: torch.Tensor) -> torch.Tensor:
        """Return RMSE, ARel and delta1 of each image, then those of C constant predictions [B,3+3C].

        NaN for images without any known depth.
        """
        errors = [_depth_errors(self._predicted(outputs, labels), labels)]
        known = (of[of > 0].cpu().numpy() for of in labels.float())
        empty = np.full((len(self.constants), 3), np.nan)
        lines = [constant_errors(truth, self.constants) if truth.size else empty for truth in known]
        return torch.cat([*errors, torch.from_numpy(np.stack(lines)).flatten(1).to(errors[0])], dim=1)

    def metrics(self, statistics: torch.Tensor) -> list[dict]:
        """Return the metrics: means over all test images of their statistics [N,3+3C]."""
        values = statistics.double().cpu().numpy()
        constant = values[:, 3:].mean(0).reshape(-1, 3)
        names = (("RMSE", True), ("ARel", True), ("delta1", False))
        return [
            {"metric": name, **({"lower_is_better": True} if lower else {}), "model": float(values[:, place].mean())}
            | {"chance": float(constant[best, place]), **with_interval(mean_interval(values[:, place]))}
            for place, ((name, lower), best) in enumerate(zip(names, best_constants(constant), strict=True))
        ]


def _depth_errors(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return RMSE, mean absolute relative error and delta1 of each depth map [B,S,S] over its known pixels: [B,3]."""
    pairs = zip(predicted.float().cpu(), truth.float().cpu(), strict=True)
    known = [(one[of > 0].numpy(), of[of > 0].numpy()) for one, of in pairs]
    errors = [depth_errors(*pair) if pair[1].size else (math.nan,) * 3 for pair in known]
    return torch.tensor(errors, dtype=torch.float32, device=predicted.device)
